"""Small networks, one for each way to go from feature maps to scores; all in eval mode, with random weights."""

import torch
from torch import nn
from torch.nn import functional as F

from support.networks import conv_relu, pooled_head


def block(inputs, outputs, stride=2):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())


class ResidualBlock(nn.Module):
    """Its input and a block of two convolutions of it."""

    def __init__(self, channels):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, maps):
        return maps + self.conv2(self.conv1(maps).relu())


def trunk(channels=3):
    return nn.Sequential(block(channels, 8), block(8, 16))


class AttentionPooling(nn.Module):
    """Positions weighted by a softmax, or gated attention (Ilse et al. 2018), of one or more heads."""

    def __init__(self, heads=1, gate=None):
        super().__init__()
        self.trunk, self.fc = trunk(), nn.Linear(16 * heads, 5)
        self.hidden, self.gate, self.weights = nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(8, heads)
        self.of_gate = gate
        self.eval()

    def forward(self, images):
        instances = self.trunk(images).flatten(2).mT
        hidden = self.hidden(instances).tanh()
        if self.of_gate:
            hidden = hidden * self.of_gate(self.gate(instances))
        attention = self.weights(hidden).softmax(1)
        return self.fc((attention.mT @ instances).flatten(1))


class ConvolutionalAttention(nn.Module):
    """Positions weighted by a softmax, or by a sigmoid and their sum, of a 1x1 convolution."""

    def __init__(self, normalise):
        super().__init__()
        self.trunk, self.attention, self.fc, self.normalise = trunk(), nn.Conv2d(16, 1, 1), nn.Linear(16, 5), normalise
        self.eval()

    def forward(self, images):
        maps = self.trunk(images)
        weights = self.normalise(self.attention(maps).flatten(2))
        return self.fc((maps.flatten(2) * weights).sum(2))


def by_sum(attention):
    gates = attention.sigmoid()
    return gates / gates.sum(2, keepdim=True)


class QueryPooling(nn.Module):
    """A learned query attends to all positions, as in CLIP's ResNets and in SigLIP."""

    def __init__(self):
        super().__init__()
        self.trunk, self.query = trunk(), nn.Parameter(torch.randn(1, 1, 16))
        self.pool, self.fc = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 5)
        self.eval()

    def forward(self, images):
        positions = self.trunk(images).flatten(2).mT
        query = self.query.expand(len(images), -1, -1)
        return self.fc(self.pool(query, positions, positions, need_weights=False)[0][:, 0])


class Keypoints(nn.Module):
    """Soft-argmax: the mean position under a softmax; the coordinates themselves, or a linear layer on them."""

    def __init__(self, head=False, by_product=False):
        super().__init__()
        self.trunk, self.logits, self.fc = trunk(), nn.Conv2d(16, 4, 1), nn.Linear(8, 5) if head else None
        self.by_product = by_product
        self.eval()

    def forward(self, images):
        weights = self.logits(self.trunk(images)).flatten(2).softmax(2)
        places = torch.linspace(0, 1, weights.shape[2])
        coordinates = torch.stack([places, places.flip(0) ** 2], 1)
        found = weights @ coordinates if self.by_product else (weights.unsqueeze(3) * coordinates).sum(2)
        return found.flatten(1) if self.fc is None else self.fc(found.flatten(1))


class Gated(nn.Module):
    """A gate written in the forward: of positions (CBAM), of channels (squeeze and excitation), or of each value."""

    def __init__(self, kind):
        super().__init__()
        self.trunk, self.fc, self.kind = trunk(), nn.Linear(16, 5), kind
        self.gate = {
            "positions": nn.Conv2d(2, 1, 7, 1, 3),
            "channels": nn.Sequential(nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1)),
            "values": nn.Conv2d(16, 16, 1),
        }[kind]
        self.eval()

    def forward(self, images):
        maps = self.trunk(images)
        seen = {
            "positions": lambda: torch.cat([maps.mean(1, keepdim=True), maps.amax(1, keepdim=True)], 1),
            "channels": lambda: maps.mean((2, 3), keepdim=True),
            "values": lambda: maps,
        }[self.kind]()
        return self.fc((maps * self.gate(seen).sigmoid()).mean((2, 3)))


class Ensemble(nn.Module):
    """Several networks: the mean of their logits, or one head on the features of all."""

    def __init__(self, members=2, head=False):
        super().__init__()
        self.members, self.head = nn.ModuleList(trunk() for _ in range(members)), head
        self.heads = nn.ModuleList(nn.Linear(16, 5) for _ in range(members))
        self.fc = nn.Linear(16 * members, 5)
        self.eval()

    def forward(self, images):
        pooled = [member(images).mean((2, 3)) for member in self.members]
        if self.head:
            return self.fc(torch.cat(pooled, 1))
        return torch.stack([head(vector) for head, vector in zip(self.heads, pooled, strict=True)]).mean(0)


class TwoPathways(nn.Module):
    """SlowFast: few frames with many channels, all frames with few, a connection between, and a head on both."""

    def __init__(self):
        super().__init__()
        self.slow1, self.slow2 = self.block(3, 8), self.block(12, 16)
        self.fast1, self.fast2 = self.block(3, 4), self.block(4, 4)
        self.lateral, self.fc = nn.Conv3d(4, 4, (5, 1, 1), (4, 1, 1), (2, 0, 0)), nn.Linear(20, 5)
        self.eval()

    def block(self, inputs, outputs):
        return nn.Sequential(nn.Conv3d(inputs, outputs, 3, (1, 2, 2), 1), nn.ReLU())

    def forward(self, clips):
        slow, fast = self.slow1(clips[:, :, ::4]), self.fast1(clips)
        slow = self.slow2(torch.cat([slow, self.lateral(fast)], 1))
        return self.fc(torch.cat([slow.mean((2, 3, 4)), self.fast2(fast).mean((2, 3, 4))], 1))


class Leads(nn.Module):
    """One trunk for all leads of a recording (B,leads,L), in a loop; the features are joined."""

    def __init__(self, leads=3):
        super().__init__()
        self.trunk, self.fc = nn.Sequential(nn.Conv1d(1, 8, 5, 2), nn.ReLU()), nn.Linear(8 * leads, 5)
        self.eval()

    def forward(self, recordings):
        leads = recordings.split(1, 1)
        return self.fc(torch.cat([self.trunk(lead).mean(2) for lead in leads], 1))


class Bands(nn.Module):
    """One trunk for all bands of an image, in a loop."""

    def __init__(self):
        super().__init__()
        self.trunk, self.fc = trunk(1), nn.Linear(48, 5)
        self.eval()

    def forward(self, images):
        return self.fc(torch.cat([self.trunk(band).mean((2, 3)) for band in images.split(1, 1)], 1))


class Views(nn.Module):
    """One trunk on several views of the same image: mirrored, or its left and right half."""

    def __init__(self, views):
        super().__init__()
        self.trunk, self.fc, self.views = trunk(), nn.Linear(16, 5), views
        self.eval()

    def forward(self, images):
        return sum(self.fc(self.trunk(view).mean((2, 3))) for view in self.views(images))


class Unet(nn.Module):
    """Two levels down and up again, with skip connections; blocks of two convolutions."""

    def __init__(self, classes=4):
        super().__init__()
        self.enc1, self.enc2, self.mid = self.double(3, 8), self.double(8, 16), self.double(16, 32)
        self.dec2, self.dec1, self.out = self.double(48, 16), self.double(24, 8), nn.Conv2d(8, classes, 1)
        self.eval()

    def double(self, inputs, outputs):
        return nn.Sequential(block(inputs, outputs, 1), block(outputs, outputs, 1))

    def forward(self, images):
        first = self.enc1(images)
        second = self.enc2(F.max_pool2d(first, 2))
        maps = self.mid(F.max_pool2d(second, 2))
        maps = self.dec2(torch.cat([F.interpolate(maps, scale_factor=2), second], 1))
        return self.out(self.dec1(torch.cat([F.interpolate(maps, scale_factor=2), first], 1)))


class Autoencoder(nn.Module):
    """Images to a code (maps, or a vector) and back."""

    def __init__(self, vector=False):
        super().__init__()
        self.encoder, self.vector = trunk(), vector
        self.to_code, self.from_code = nn.Linear(16 * 64, 6), nn.Linear(6, 16 * 64)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(16, 8, 2, 2), nn.ReLU(), nn.ConvTranspose2d(8, 3, 2, 2), nn.Sigmoid()
        )
        self.eval()

    def forward(self, images):
        code = self.encoder(images)
        if self.vector:
            code = self.from_code(self.to_code(code.flatten(1))).unflatten(1, (16, 8, 8))
        return self.decoder(code)


class SuperResolution(nn.Module):
    """A residual trunk, a sub-pixel convolution, and a last convolution or none."""

    def __init__(self, last):
        super().__init__()
        self.first, self.body = conv_relu(), nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
        self.up = nn.Sequential(nn.Conv2d(8, 8 * 4 if last else 3 * 4, 3, 1, 1), nn.PixelShuffle(2))
        self.last = nn.Conv2d(8, 3, 3, 1, 1) if last else nn.Identity()
        self.eval()

    def forward(self, images):
        maps = self.first(images)
        return self.last(self.up(maps + self.body(maps)))


class Coarse(nn.Module):
    """Coarse classes from a middle stage and fine ones from the last, in one tensor, a tuple or a dict."""

    def __init__(self, join=lambda coarse, fine: torch.cat([coarse, fine], 1)):
        super().__init__()
        self.s2, self.s4, self.join = trunk(), nn.Sequential(block(16, 32), block(32, 32)), join
        self.coarse, self.fine = nn.Linear(16, 2), nn.Linear(32, 3)
        self.eval()

    def forward(self, images):
        middle = self.s2(images)
        last = self.s4(middle)
        return self.join(self.coarse(middle.mean((2, 3))), self.fine(last.mean((2, 3))))


class Features(nn.Module):
    """Returns its features: maps, maps that a module normalises, or tokens; beside logits, or alone."""

    def __init__(self, kind, logits=False):
        super().__init__()
        self.trunk, self.kind, self.head = trunk(), kind, pooled_head(16) if logits else None
        self.norm = nn.LayerNorm(16) if kind == "tokens" else nn.GroupNorm(4, 16)
        self.eval()

    def forward(self, images):
        maps = self.trunk(images)
        features = self.norm(maps.flatten(2).mT) if self.kind == "tokens" else maps
        if self.kind == "norm":
            features = self.norm(maps)
        return features if self.head is None else (self.head(maps), features)
