"""Small networks with the traits of real ones that a capture can stumble over; each forward takes a millisecond.

Knows nothing of gradcam_fast. All take (B,3,H,W) images and are in eval mode, with random weights.
"""

from collections import OrderedDict, namedtuple

import torch
from torch import nn


def do_nothing(*_):
    pass


class ConvNet(nn.Module):
    """Two convolutions, each with an in-place ReLU behind it; 16x16 images give 4x4 maps at `features`.

    `at_start` and `at_head` are called in every forward, before the trunk and behind it: places where a test counts,
    waits or raises. `calls` counts forwards.
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
        # Four pooled positions: the gradients differ from place to place, so that the methods differ too.
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
    """The layers of ConvNet and nothing that changes from call to call, so that compiled code may be used again."""
    model = ConvNet()
    return nn.Sequential(OrderedDict(features=model.features, head=model.head)).eval()


class Shaped(ConvNet):
    """One output per image, in a given shape such as (B,1,1,1), between 0 and 1."""

    def __init__(self, *trailing):
        super().__init__(classes=1)
        self.trailing = trailing

    def forward(self, images):
        return super().forward(images).sigmoid().reshape(len(images), *self.trailing)


class Wrapped(ConvNet):
    """The logits inside whatever `wrap` makes of them."""

    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, images):
        return self.wrap(super().forward(images))


LogitsAndFeatures = namedtuple("LogitsAndFeatures", ["logits", "features"])


class Repeating(nn.Module):
    """One block and one in-place ReLU, each run `times` times."""

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
    """Buffers that the forward itself changes, one in place and one by assignment, in eval mode too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("average", torch.zeros(3))

    def forward(self, images):
        self.seen += len(images)
        self.average = 0.9 * self.average + 0.1 * images.detach().mean((0, 2, 3))
        return super().forward(images)


class Muted(ConvNet):
    """A forward that turns gradients off for itself."""

    @torch.no_grad()
    def forward(self, images):
        return super().forward(images).detach()


class Unbatchable(ConvNet):
    """A head with an operation that cannot be differentiated for several targets at once."""

    def forward(self, images):
        return Doubled.apply(super().forward(images))


class Doubled(torch.autograd.Function):
    """Its backward wants the numbers of one gradient, which no batched backward has."""

    @staticmethod
    def forward(ctx, logits):
        return logits * 2

    @staticmethod
    def backward(ctx, gradient):
        return torch.from_numpy(gradient.numpy() * 2)


class TwoInputs(ConvNet):
    """Images and a number per image."""

    def forward(self, images, shift):
        return super().forward(images) * shift.unsqueeze(1)
