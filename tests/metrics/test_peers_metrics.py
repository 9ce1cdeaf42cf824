"""Known faults of peers' metrics: one test each, with the true value, worked out by hand, beside theirs and ours."""

import numpy
import pytest
import torch
from torch import nn

from gradcam_fast import metrics


class Pixels(nn.Module):
    """A model whose two outputs are the sums of the upper and of the lower half of the image."""

    def forward(self, images):
        return torch.stack([half.sum((1, 2, 3)) for half in images.chunk(2, 2)], 1)


FLAT = torch.full((1, 8, 8), 0.5)
IMAGE = torch.full((1, 1, 8, 8), 1 / 64)


def test_pytorch_grad_cam_removes_every_pixel_of_a_sparse_map():
    peer = pytest.importorskip("pytorch_grad_cam.metrics.perturbation_confidence")
    heat = torch.zeros(10, 10)
    heat[0, 0] = 1
    removed = []
    peer.RemoveMostRelevantFirst(80, lambda image, kept: removed.append(int((kept == 0).sum())))(
        torch.rand(1, 10, 10), heat
    )
    assert removed == [100]  # of the 20 that 80 asks for

    class Watching(nn.Module):
        def forward(self, images):
            removed.extend(images.eq(0).flatten(1).sum(1).tolist())
            return images.flatten(1)[:, :2]

    metrics.deletion(Watching(), torch.ones(1, 1, 10, 10), heat[None], 0, steps=5)
    assert removed[1:] == [0, 20, 40, 60, 80, 100]


def test_pytorch_grad_cams_drop_in_confidence_is_not_divided_by_the_confidence():
    """Chattopadhay et al. 2018, section 4.1.1: max(0, Y - O) / Y, so a drop from 0.01 to 0 counts as one from 1."""
    peer = pytest.importorskip("pytorch_grad_cam.metrics.cam_mult_image")
    mask = torch.ones(1, 8, 8)
    mask[:, :2] = 0  # half of what the first output sums up
    theirs = peer.DropInConfidence()(IMAGE, mask.numpy(), [lambda output: output[0]], Pixels())
    assert theirs == pytest.approx([0.25])  # 0.5 - 0.25
    assert metrics.confidence_drop(Pixels(), IMAGE, mask, 0, score="logit").tolist() == pytest.approx([0.5])


def test_torchcam_deletes_equal_heat_row_by_row():
    """A flat map says nothing, so that deletion by it takes as much of one half as of the other, at every step."""
    pytest.importorskip("torchcam", reason="torchcam is not installed (extra peers)")
    from torchcam.metrics import DeletionInsertionMetric

    class Flat:
        """An extractor whose maps are flat."""

        def __init__(self):
            self.model = Pixels()

        def __call__(self, *_, **__):
            return [FLAT]

        def fuse_cams(self, maps):
            return maps[0]

        def _hooks_off(self):
            return torch.no_grad()

    judge = DeletionInsertionMetric(Flat(), None, steps=8)
    judge.update(IMAGE, 0)
    theirs = judge.summary()["deletion_auc"]
    ours = [
        float(metrics.deletion(Pixels(), IMAGE, FLAT, 0, steps=8, score="logit", seed=seed).area) for seed in range(20)
    ]
    assert theirs == pytest.approx(0.125)  # the upper half is gone after half of the steps
    assert sum(ours) / len(ours) == pytest.approx(0.25, abs=0.01)  # the mean over all orders
    assert min(ours) > 0.2


def almost_flat(count):
    """Quantus refuses a flat map, but not one with a single cold pixel."""
    maps = FLAT.repeat(count, 1, 1)
    maps[:, -1, -1] = 0.25
    return maps


def test_quantus_pointing_game_counts_a_flat_map_and_a_missing_object_as_hits():
    quantus = pytest.importorskip("quantus", reason="Quantus is not installed (extra peers)")
    masks = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    masks[0, 0, 0, 0] = True  # one pixel of 64 in the first image, nothing in the second
    maps = almost_flat(2)
    game = quantus.PointingGame(disable_warnings=True, abs=False, normalise=False)
    theirs = game(
        model=nn.Flatten(),
        x_batch=numpy.ones((2, 1, 8, 8), numpy.float32),
        y_batch=numpy.zeros(2, int),
        a_batch=maps[:, None].numpy(),
        s_batch=masks.numpy(),
    )
    assert [bool(hit) for hit in theirs] == [True, True]
    ours = metrics.pointing_game(maps, masks[:, 0], tolerance=0)
    assert float(ours[0]) == pytest.approx(1 / 63) and ours[1].isnan()


def test_quantus_rank_accuracy_takes_equal_heat_row_by_row():
    quantus = pytest.importorskip("quantus", reason="Quantus is not installed (extra peers)")
    masks = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    masks[..., :4, :] = True
    theirs = quantus.RelevanceRankAccuracy(disable_warnings=True, abs=False, normalise=False)(
        model=nn.Flatten(),
        x_batch=numpy.ones((1, 1, 8, 8), numpy.float32),
        y_batch=numpy.zeros(1, int),
        a_batch=almost_flat(1)[:, None].numpy(),
        s_batch=masks.numpy(),
    )
    ours = [float(metrics.rank_accuracy(almost_flat(1), masks[:, 0], seed=seed)) for seed in range(20)]
    assert theirs[0] > 0.95  # of an object in the upper half, by a map that says nothing
    assert sum(ours) / len(ours) == pytest.approx(0.5, abs=0.05)
