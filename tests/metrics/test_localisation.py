"""Pointing game, mass and rank accuracy and overlap equal values counted by hand, and Quantus'."""

import numpy
import pytest
import torch

from gradcam_fast import metrics

BOX = torch.tensor([[2.0, 1.0, 6.0, 3.0]])


def in_box():
    mask = torch.zeros(1, 6, 8, dtype=torch.bool)
    mask[0, 1:3, 2:6] = True
    return mask


def test_boxes_and_masks_are_the_same_objects():
    heat = torch.rand(1, 6, 8, generator=torch.Generator().manual_seed(0))
    for metric in (metrics.pointing_game, metrics.mass_accuracy, metrics.rank_accuracy, metrics.iou_at):
        assert torch.equal(metric(heat, BOX), metric(heat, in_box()))
        assert torch.equal(metric(heat, [BOX]), metric(heat, in_box()))


@pytest.mark.parametrize(
    ("row", "column", "tolerance", "expected"),
    [(1, 2, 0, 1), (0, 2, 0, 0), (0, 2, 1, 1), (0, 1, 1, 0), (0, 1, 1.5, 1), (5, 7, 3, 0), (5, 7, 4, 1)],
)
def test_a_hit_is_at_most_the_tolerance_away(row, column, tolerance, expected):
    heat = torch.zeros(1, 6, 8)
    heat[0, row, column] = 1
    assert metrics.pointing_game(heat, BOX, tolerance=tolerance).tolist() == [expected]


def test_of_several_maxima_the_share_that_hits_counts():
    assert metrics.pointing_game(torch.zeros(1, 6, 8), BOX, tolerance=0).tolist() == pytest.approx([8 / 48])


def test_mass_rank_and_overlap_by_hand():
    heat = torch.tensor([[[4.0, 3.0, 2.0, 1.0]]])
    there = torch.tensor([[[True, False, True, False]]])
    assert metrics.mass_accuracy(heat, there).tolist() == pytest.approx([0.6])
    assert metrics.rank_accuracy(heat, there).tolist() == [0.5]
    assert metrics.iou_at(heat, there, 3).tolist() == pytest.approx([1 / 3])


def test_any_box_of_an_image_counts():
    heat = torch.zeros(2, 6, 8)
    heat[0, 5, 7] = heat[1, 0, 0] = 1
    objects = [torch.tensor([[0.0, 0, 2, 2], [7, 5, 8, 6]]), torch.tensor([[4.0, 4, 6, 6]])]
    assert metrics.pointing_game(heat, objects, tolerance=0).tolist() == [1, 0]


def test_k_maps_have_an_object_each():
    heat = torch.rand(2, 3, 6, 8)
    assert metrics.mass_accuracy(heat, BOX.expand(2, 3, 4)).shape == (2, 3)


def test_without_an_object_or_with_nan_there_is_no_result():
    heat = torch.rand(3, 6, 8)
    heat[1, 0, 0] = torch.nan
    objects = [BOX, BOX, torch.zeros(0, 4)]
    for metric in (metrics.pointing_game, metrics.mass_accuracy, metrics.rank_accuracy, metrics.iou_at):
        assert metric(heat, objects).isnan().tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("heat", "objects", "says"),
    [
        (torch.rand(2, 6, 8), BOX, "expected boxes (2, 4)"),
        (torch.rand(2, 6, 8), in_box(), "masks have the heatmaps' (2, 6, 8)"),
        (torch.rand(2, 6, 8), [BOX], "boxes of 1 images"),
        (torch.rand(6, 8), BOX, "expected (B,H,W)"),
        (numpy.zeros((1, 6, 8)), BOX, "heatmaps is a ndarray"),
    ],
)
def test_objects_that_do_not_fit_are_refused(heat, objects, says):
    with pytest.raises((TypeError, ValueError)) as refusal:
        metrics.mass_accuracy(heat, objects)
    assert says in str(refusal.value)
