"""A model with a checkpointed block, the ways in which the block is run again, and its twin that keeps activations."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from gradcam_fast import explain


def conv(channels, *more):
    return nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), *more)


class Staged(nn.Module):
    """Before, a checkpointed block with dropout and running statistics, behind; `run` is how the block is run."""

    def __init__(self, run, behind=True):
        super().__init__()
        self.before, self.block = conv(3), nn.Sequential(conv(8, nn.Dropout(0.3)), conv(8))
        self.behind = nn.Conv2d(8, 6, 3, padding=1) if behind else nn.Identity()
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24 if behind else 32, 5))
        self.run = run

    def forward(self, images):
        return self.head(self.behind(self.run(self.block, self.before(images))))


def kept(block, maps):
    return block(maps)


def recomputed(block, maps):
    return checkpoint(block, maps, use_reentrant=False)


def recomputed_in_pieces(block, maps):
    """As timm's models do: in segments, and of a Sequential only the parts run."""
    return checkpoint_sequential(block, 2, maps, use_reentrant=False)


def recomputed_in_calls(block, maps):
    """As transformers' models do: by each layer for itself, its hooks inside, and in training mode only."""
    for layer in block:
        maps = checkpoint(layer.__call__, maps, use_reentrant=False) if layer.training else layer(maps)
    return maps


def reentrant(block, maps):
    return checkpoint(block, maps, use_reentrant=True)


def twins(run, training=False, **choices):
    """The same network keeping its activations, and run otherwise."""
    plain, other = Staged(kept, **choices), Staged(run, **choices)
    other.load_state_dict(plain.state_dict())
    return plain.train(training), other.train(training)


def explained(model, images, **choices):
    torch.manual_seed(3)  # of the dropout
    return explain(model, images, relu=False, **choices)


def assert_same(found, expected):
    assert torch.equal(found.heatmap, expected.heatmap) and torch.equal(found.logits, expected.logits)
    assert found.layer == expected.layer and expected.valid.all()
