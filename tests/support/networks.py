"""Small networks with traits of real ones that are hard to explain; a forward takes about a millisecond.

All take images (B,3,H,W), have random weights and are in eval mode, unless their docstring says otherwise.
"""

from collections import OrderedDict, namedtuple

import torch
from torch import nn


def do_nothing(*_):
    pass


class ConvNet(nn.Module):
    """Two convolutions, each with an in-place ReLU behind it; 16x16 images give 4x4 maps at `features`.

    `at_start` and `at_head` are called in every forward, before the trunk and behind it; a test may count, wait or
    raise there. `calls` counts forwards.
    """

    def __init__(self, classes=5, dropout=0.0):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 12, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
        )
        # Four pooled positions: gradients differ between positions, so that methods give different maps.
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.BatchNorm1d(48), nn.Dropout(dropout), nn.Linear(48, classes)
        )
        self.at_start = self.at_head = do_nothing
        self.runs = []
        self.eval()

    @property
    def calls(self):
        return len(self.runs)

    def forward(self, images):
        self.runs.append(len(images))
        self.at_start(images)
        maps = self.features(images)
        self.at_head(maps)
        return self.head(maps)


def stateless():
    """The layers of a ConvNet without any state that changes between calls, so that compiled code is used again."""
    model = ConvNet()
    return nn.Sequential(OrderedDict(features=model.features, head=model.head)).eval()


def conv_relu(channels=3):
    """A trunk of one convolution: (B,channels,H,W) to (B,8,H,W)."""
    return nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU())


def pooled_head(features):
    """A head on globally pooled maps: (B,features,h,w) to logits (B,5)."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, 5))


class Shaped(ConvNet):
    """One output per image between 0 and 1, in a shape such as (B,1,1,1)."""

    def __init__(self, *trailing):
        super().__init__(classes=1)
        self.trailing = trailing

    def forward(self, images):
        return super().forward(images).sigmoid().reshape(len(images), *self.trailing)


class Wrapped(ConvNet):
    """Returns `wrap(logits)`."""

    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, images):
        return self.wrap(super().forward(images))


LogitsAndFeatures = namedtuple("LogitsAndFeatures", ["logits", "features"])


class Repeating(nn.Module):
    """A block and an in-place ReLU that each run `times` times."""

    def __init__(self, times):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.block = nn.Conv2d(6, 6, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5))
        self.times = times
        self.eval()

    def forward(self, images):
        maps = self.stem(images)
        for _ in range(self.times):
            maps = maps + self.relu(self.block(maps))
        return self.head(maps)


class DeadEnds(ConvNet):
    """A layer that is never run, one whose output is thrown away, and one whose output is detached."""

    def __init__(self):
        super().__init__()
        self.never_run = nn.Conv2d(3, 4, 1)
        self.thrown_away = nn.Conv2d(3, 4, 1)
        self.detached = nn.Conv2d(3, 1, 1)

    def forward(self, images):
        self.thrown_away(images)
        return super().forward(images) + self.detached(images).detach().mean((1, 2, 3)).unsqueeze(1)


class Counting(ConvNet):
    """Its forward changes two buffers, one in place and one by assignment, also in eval mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("average", torch.zeros(3))

    def forward(self, images):
        self.seen += len(images)
        self.average = 0.9 * self.average + 0.1 * images.detach().mean((0, 2, 3))
        return super().forward(images)


class Muted(ConvNet):
    """A forward that turns gradients off and detaches its output."""

    @torch.no_grad()
    def forward(self, images):
        return super().forward(images).detach()


class Unbatchable(ConvNet):
    """A head with an operation that cannot be differentiated for several targets at once."""

    def forward(self, images):
        return Doubled.apply(super().forward(images))


class Doubled(torch.autograd.Function):
    """A backward through NumPy, which no batched backward can run."""

    @staticmethod
    def forward(ctx, logits):
        return logits * 2

    @staticmethod
    def backward(ctx, gradient):
        return torch.from_numpy(gradient.numpy() * 2)


class TwoInputs(ConvNet):
    """Takes images and one number per image."""

    def forward(self, images, shift):
        return super().forward(images) * shift.unsqueeze(1)


class TwoLevels(nn.Module):
    """Two outputs: one of the trunk, and one of a branch behind it."""

    def __init__(self):
        super().__init__()
        self.trunk, self.branch = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.runs = 0

    def forward(self, images):
        self.runs += 1
        trunk = self.trunk(images)
        return trunk.mean((2, 3)), self.branch(trunk).mean((2, 3))


class PatchNet(nn.Module):
    """A small vision transformer: patches of 8 pixels behind `class_tokens`, one attention layer, a head.

    The head reads the first token, or the mean where there are no class tokens.
    """

    def __init__(self, class_tokens):
        super().__init__()
        self.class_tokens = nn.Parameter(torch.randn(1, class_tokens, 16))
        self.patch, self.norm = nn.Conv2d(3, 16, 8, 8), nn.LayerNorm(16)
        self.mix, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 5)
        self.eval()

    def embedded(self, images):
        patches = self.patch(images).flatten(2).mT
        return torch.cat([self.class_tokens.expand(len(images), -1, -1), patches], 1)

    def forward(self, images):
        tokens = self.norm(self.embedded(images))
        tokens = tokens + self.mix(tokens, tokens, tokens)[0]
        return self.head(tokens[:, 0] if self.class_tokens.shape[1] else tokens.mean(1))


class MaskedPatchNet(PatchNet):
    """A third of the patches, as a masked autoencoder's encoder sees them."""

    def forward(self, images):
        patches = self.patch(images).flatten(2).mT
        tokens = self.norm(torch.cat([self.class_tokens.expand(len(images), -1, -1), patches[:, ::3]], 1))
        return self.head((tokens + self.mix(tokens, tokens, tokens)[0])[:, 0])
