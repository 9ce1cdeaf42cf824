"""A model with a block that is checkpointed in different ways, and its plain twin that keeps activations."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from gradcam_fast import explain


def conv(channels, *more):
    return nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), *more)


class Staged(nn.Module):
    """Stages `before`, `block` (dropout, running statistics) and `behind`; `run(block, maps)` runs the block."""

    def __init__(self, run, behind=True):
        super().__init__()
        self.before, self.block = conv(3), nn.Sequential(conv(8, nn.Dropout(0.3)), conv(8))
        self.behind = nn.Conv2d(8, 6, 3, padding=1) if behind else nn.Identity()
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24 if behind else 32, 5))
        self.run = run

    def forward(self, images):
        return self.head(self.behind(self.run(self.block, self.before(images))))


def keep_activations(block, maps):
    return block(maps)


def recomputed(block, maps):
    return checkpoint(block, maps, use_reentrant=False)


def recomputed_in_pieces(block, maps):
    """As timm does: in segments; the parts of the Sequential run, not the Sequential itself."""
    return checkpoint_sequential(block, 2, maps, use_reentrant=False)


def recomputed_in_calls(block, maps):
    """As transformers does: each layer with its hooks, and in training mode only."""
    for layer in block:
        maps = checkpoint(layer.__call__, maps, use_reentrant=False) if layer.training else layer(maps)
    return maps


def reentrant(block, maps):
    return checkpoint(block, maps, use_reentrant=True)


def twins(run, training=False, **choices):
    """Two networks of equal weights: one keeps the activations of its block, one runs it by `run`."""
    plain, twin = Staged(keep_activations, **choices), Staged(run, **choices)
    twin.load_state_dict(plain.state_dict())
    return plain.train(training), twin.train(training)


def explained(model, images, **choices):
    torch.manual_seed(3)  # for the dropout
    return explain(model, images, relu=False, **choices)


def assert_same(actual, expected):
    assert torch.equal(actual.heatmap, expected.heatmap) and torch.equal(actual.logits, expected.logits)
    assert actual.layer == expected.layer and expected.valid.all()
