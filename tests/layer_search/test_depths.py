"""Networks that end early, or skip parts, for some images are explained at the layer of what ran, in any order."""

import itertools

import pytest
import torch
from support.heads import block, trunk
from support.networks import pooled_head
from torch import nn

from gradcam_fast import explain

DARK, LIGHT = torch.full((1, 3, 32, 32), 0.1), torch.full((1, 3, 32, 32), 0.9)
DARK, LIGHT = (images + 0.05 * torch.rand(3, 1, 32, 32) for images in (DARK, LIGHT))


class Deciding(nn.Module):
    """A network whose forward depends on how light the images are: all of them, or each."""

    def __init__(self):
        super().__init__()
        self.s1, self.s2, self.s3 = trunk(), block(16, 16, 1), block(16, 16, 1)
        self.exit1, self.exit2, self.exit3 = (pooled_head(16) for _ in range(3))
        self.eval()

    @staticmethod
    def is_light(images):
        return images.mean() > 0.5


class EarlyExit(Deciding):
    def forward(self, images):
        maps = self.s1(images)
        if not self.is_light(images):
            return self.exit1(maps)
        return self.exit3(self.s3(self.s2(maps)))


class ExitsSoFar(Deciding):
    """Returns the logits of all exits that it has come to."""

    def forward(self, images):
        maps = self.s1(images)
        logits = [self.exit1(maps)]
        if self.is_light(images):
            maps = self.s2(maps)
            logits.append(self.exit2(maps))
        return logits


class SkippedBlock(Deciding):
    """The last block is left out, as gates of SkipNet or ConvNet-AIG do."""

    def forward(self, images):
        maps = self.s2(self.s1(images))
        return self.exit3(self.s3(maps) if self.is_light(images) else maps)


class SecondBranch(Deciding):
    """A branch beside the last block, for light images only."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 5)
        self.eval()

    def forward(self, images):
        maps = self.s1(images)
        pooled = self.s2(maps).mean((2, 3))
        if self.is_light(images):
            pooled = pooled + self.s3(maps).mean((2, 3))
        return self.fc(pooled)


class SecondTrunk(Deciding):
    """A network before the other, for light images only."""

    def __init__(self):
        super().__init__()
        self.other = trunk()
        self.eval()

    def forward(self, images):
        logits = self.exit1(self.other(images)) if self.is_light(images) else 0
        return logits + self.exit2(self.s1(images))


class OneExpert(Deciding):
    """Two blocks of experts in turn, one expert of each."""

    def forward(self, images):
        maps = (self.s2 if self.is_light(images) else self.s3)(self.s1(images))
        return self.exit3(maps)


NETWORKS = {
    # The layer for dark images, and for light ones.
    "early exit": (EarlyExit, {"target": 1}, "s1", "s3"),
    "early exit, highest": (EarlyExit, {}, "s1", "s3"),
    "early exit, callable": (EarlyExit, {"target": lambda logits: logits[:, 1]}, "s1", "s3"),
    "exits so far": (ExitsSoFar, {"target": 1, "output": lambda out: out[-1]}, "s1", "s2"),
    "exits so far, callable": (ExitsSoFar, {"target": lambda out: out[-1][:, 1]}, "s1", "s2"),
    "first exit": (ExitsSoFar, {"target": 1, "output": lambda out: out[0]}, "s1", "s1"),
    "skipped block": (SkippedBlock, {"target": 1}, "s2", "s3"),
    "second branch": (SecondBranch, {"target": 1}, "s2", "s1"),
    "second trunk": (SecondTrunk, {"target": 1}, "s1", ("other", "s1")),
    "one expert": (OneExpert, {"target": 1}, "s3", "s2"),
}


def count_runs(model):
    runs = []
    model.register_forward_pre_hook(lambda *_: runs.append(1))
    return runs


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("order", list(itertools.permutations(["dark", "light", "light and dark"])), ids=" then ".join)
def test_the_layer_is_that_of_what_runs_whatever_was_asked_before(name, order):
    make, choices, of_dark, of_light = NETWORKS[name]
    torch.manual_seed(1)
    model = make()
    asked = {
        "dark": (DARK, of_dark),
        "light": (LIGHT, of_light),
        # The first image alone is light, and all together are dark.
        "light and dark": (torch.cat([LIGHT[:1], DARK]), of_dark),
    }
    runs = count_runs(model)
    for question in order:
        images, layer = asked[question]
        explanation = explain(model, images, relu=False, **choices)
        assert explanation.layer == layer and explanation.valid.all(), question
    for question in order:  # each has been found
        images, layer = asked[question]
        runs.clear()
        assert explain(model, images, relu=False, **choices).layer == layer, question
        assert len(runs) == 1, question


class EachImageExits(Deciding):
    """Only the light images of a batch go through the last blocks."""

    def forward(self, images):
        maps = self.s1(images)
        logits, light = self.exit1(maps), images.mean((1, 2, 3)) > 0.5
        if light.any():
            logits = logits.index_put((light,), self.exit3(self.s3(self.s2(maps[light]))))
        return logits


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_images_that_exit_at_different_depths_share_the_layer_before(order):
    torch.manual_seed(1)
    model = EachImageExits()
    questions = [(DARK, "s1"), (LIGHT, "s3"), (torch.cat([LIGHT[:1], DARK]), "s1")]
    for place in (*order, *order):
        images, layer = questions[place]
        explanation = explain(model, images, target=1, relu=False)
        assert explanation.layer == layer and explanation.valid.all(), place


class Steps(Deciding):
    """One block in a loop, as often as the images need."""

    def forward(self, images):
        maps = self.s1(images)
        for _ in range(3 if self.is_light(images) else 1):
            maps = self.s2(maps)
        return self.exit1(maps)


def test_of_a_block_in_a_loop_the_last_call_counts_however_often_it_runs():
    torch.manual_seed(1)
    model = Steps()
    for images in (DARK, LIGHT, DARK):
        explanation = explain(model, images, target=1, relu=False)
        assert explanation.layer == "s2" and explanation.valid.all()
