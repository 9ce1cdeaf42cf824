"""Boxes lie around the hot regions, to the pixel."""

import pytest
import torch

from gradcam_fast import metrics


def heatmap():
    heat = torch.zeros(10, 12)
    heat[1:4, 2:9] = 0.8
    heat[2, 3] = 1
    heat[6:8, 10:12] = 0.6
    return heat


def test_each_region_has_a_box_the_largest_first():
    assert metrics.boxes(heatmap()).tolist() == [[2, 1, 9, 4], [10, 6, 12, 8]]
    assert metrics.boxes(heatmap(), largest=True).tolist() == [[2, 1, 9, 4]]
    assert metrics.boxes(heatmap(), 0.9).tolist() == [[3, 2, 4, 3]]


def test_pixels_that_touch_at_a_corner_are_one_region():
    heat = torch.eye(4)
    assert metrics.boxes(heat).tolist() == [[0, 0, 4, 4]]


def test_a_cold_map_has_no_box():
    assert metrics.boxes(torch.zeros(5, 5)).shape == (0, 4)


def test_batches_and_classes_are_lists():
    both = torch.stack([heatmap(), heatmap().flip(1)])
    assert [len(found) for found in metrics.boxes(both)] == [2, 2]
    assert metrics.boxes(both)[1].tolist() == [[3, 1, 10, 4], [0, 6, 2, 8]]
    assert len(metrics.boxes(both[:, None].expand(-1, 3, -1, -1))[0]) == 3


def test_the_mask_is_where_the_map_is_hot():
    assert int(metrics.mask(heatmap(), 0.7).sum()) == 21
    with pytest.raises(TypeError, match="heatmap is no floating tensor"):
        metrics.mask([[1.0]])


def test_each_region_is_the_mask_of_its_box():
    heat = heatmap()
    found = metrics.region_masks(heat)
    assert [int(region.sum()) for region in found] == [21, 4]
    for region, box in zip(found, metrics.boxes(heat), strict=True):
        rows, columns = region.nonzero().T
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == box.tolist()
    assert torch.equal(found.any(0), metrics.mask(heat))
    assert torch.equal(metrics.region_masks(heat, largest=True), found[:1])
    assert metrics.region_masks(torch.zeros(5, 6)).shape == (0, 5, 6)


def test_regions_of_a_batch_are_refused():
    with pytest.raises(ValueError, match=r"heatmap has shape \(2, 4, 4\); give one heatmap"):
        metrics.region_masks(torch.zeros(2, 4, 4))
