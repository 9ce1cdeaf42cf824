"""`outlines` and `overlay(edges=True)`: the edges of OpenCV's Canny, drawn as the published recipe draws them."""

import cv2
import numpy
import pytest
import torch
from support.opencv_recipe import as_recipe_input, assert_within_one_level, recipe

from gradcam_fast import overlay
from gradcam_fast.visual.edges import outlines


@pytest.fixture
def shapes():
    """Photos with edges at known places: a bright square on faint noise, and a diagonal."""
    shapes = torch.randint(0, 20, (2, 3, 24, 32), dtype=torch.uint8)
    shapes[0, :, 8:16, 12:20] = 255
    shapes[1, 1] = torch.triu(torch.full((24, 32), 250, dtype=torch.uint8))
    return shapes


def test_outlines_run_around_a_bright_square_and_nowhere_else(shapes):
    gray = (outlines(shapes)[0, 0] == 128).nonzero()
    assert (outlines(shapes)[0, 0] == 255).sum() + len(gray) == 24 * 32
    assert gray.amin(0).tolist() == [7, 11] and gray.amax(0).tolist() == [16, 20]
    inside = (gray[:, 0] > 8) & (gray[:, 0] < 15) & (gray[:, 1] > 12) & (gray[:, 1] < 19)
    assert not inside.any() and len(gray) >= 28


def test_edges_are_what_canny_finds_under_the_map(shapes):
    heatmaps = torch.rand(2, 24, 32)
    blend = overlay(shapes, heatmaps, edges=True, alpha=0.3)
    for i in range(2):
        gray = 255 - cv2.Canny(as_recipe_input(shapes[i]), 100, 200) // 2
        expected = recipe(numpy.repeat(gray[..., None], 3, axis=2), heatmaps[i].numpy(), 0.3)
        assert gray.min() == 128
        assert_within_one_level(blend[i], torch.from_numpy(expected).permute(2, 0, 1))


def test_edges_look_as_matplotlib_draws_them_translucent_under_a_translucent_map(shapes):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heatmap = torch.rand(24, 32)
    heatmap[0, :2] = torch.tensor([0.0, 1.0])
    figure = Figure(figsize=(32 / 128, 24 / 128), dpi=128, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    edges = cv2.Canny(as_recipe_input(shapes[0]), 100, 200)
    axes.imshow(255 - edges, cmap="gray", alpha=0.5, interpolation="nearest")
    axes.imshow(heatmap.numpy(), cmap="coolwarm", alpha=0.5, interpolation="nearest")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    expected = torch.from_numpy(numpy.asarray(canvas.buffer_rgba())[..., :3].copy()).permute(2, 0, 1)
    blend = overlay(shapes[0], heatmap, colormap="coolwarm", alpha=0.5, edges=True)[0]
    assert (blend.int() - expected.int()).abs().max() <= 3  # matplotlib rounds twice, and splits [0,1] otherwise


def test_edges_of_levels_fractions_normalised_and_gray_images_are_the_same(shapes):
    heatmaps = torch.rand(2, 2, 24, 32)
    expected = overlay(shapes, heatmaps, edges=True)
    assert torch.equal(overlay(shapes / 255, heatmaps, edges=True), expected)
    assert torch.equal(overlay((shapes / 255 - 0.4) / 0.2, heatmaps, edges=True, mean=0.4, std=0.2), expected)
    gray = shapes[:, :1]
    assert torch.equal(outlines(gray), outlines(gray.expand(-1, 3, -1, -1)))
    assert outlines(shapes[:0]).shape == (0, 1, 24, 32)
