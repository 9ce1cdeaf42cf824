"""The figure of a layer's channels: the strongest ones, in order, in their own colours, and the histogram of all."""

import pytest
import torch
from support.drawn import assert_readable, pictures_in, texts_in

from gradcam_fast.visual.colormaps import colorize
from gradcam_fast.visual.figures import channels


def repeated(picture, times):
    return picture.repeat_interleave(times, -2).repeat_interleave(times, -1)


@pytest.fixture
def activations():
    """Four channels of 2 x 2, the third of which is dead."""
    return torch.tensor([[[0.0, 1], [2, 4]], [[-3.0, 0], [0, 0]], [[0.0, 0], [0, 0]], [[1.0, 1], [1, 1]]])


@pytest.fixture
def gradients():
    """Of the mean 1, -4, 9 and 0.5."""
    return torch.tensor([[[4.0, 0], [0, 0]], [[-4.0, -4], [-4, -4]], [[9.0, 9], [9, 9]], [[2.0, -1], [1, 0]]])


def test_the_strongest_channels_weigh_most_on_the_map_dead_ones_nothing(activations, gradients, tmp_path):
    figure = channels(activations, gradients, count=3)
    title, *captions, below = texts_in(figure)
    assert title.startswith("the 3 strongest of 4 channels")
    assert captions == [
        *("channel 1 -3 to 0", "channel 0 0 to 4", "channel 3 1 to 1"),
        *("weight -4 up to ±4", "weight 1 up to ±4", "weight 0.5 up to ±2"),
    ]
    assert below == "pooled gradients of all 4 channels"
    found = pictures_in(figure, tmp_path / "a.png")
    assert len(found) == 6
    assert torch.equal(found[0], repeated(colorize(torch.tensor([[0.0, 1], [1, 1]]), "viridis"), 80))
    assert torch.equal(found[1], repeated(colorize(activations[0] / 4, "viridis"), 80))
    assert torch.equal(found[2], repeated(colorize(torch.zeros(2, 2), "viridis"), 80))
    assert torch.equal(found[3], repeated(colorize(torch.zeros(2, 2), "coolwarm"), 80))
    assert torch.equal(found[4], repeated(colorize(torch.tensor([[1.0, 0.5], [0.5, 0.5]]), "coolwarm"), 80))
    assert torch.equal(found[5], repeated(colorize(torch.tensor([[1.0, 0.25], [0.75, 0.5]]), "coolwarm"), 80))


def test_the_histogram_counts_every_channel_and_marks_those_drawn(activations, gradients):
    chart = channels(activations, gradients, count=2).axes[-1]
    bars = [bar for bar in chart.patches if bar.get_height()]
    assert sum(bar.get_height() for bar in bars) == 4
    assert min(bar.get_x() for bar in bars) == pytest.approx(-4)
    assert max(bar.get_x() + bar.get_width() for bar in bars) == pytest.approx(9)
    marks = [line for line in chart.lines if line.get_color() == "tab:red"]
    assert [mark.get_xdata()[0] for mark in marks] == [-4, 1]


@pytest.mark.parametrize("shape", [(40, 7, 7), (13, 1, 1), (3, 300, 200), (700, 14, 3), (1, 56, 56)])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e7])
def test_channels_of_any_size_and_scale_can_be_read(shape, scale):
    figure = channels(torch.randn(shape), scale * torch.randn(shape), count=13)
    assert len(figure.axes) == 2 * min(13, shape[0]) + 1
    assert_readable(figure)


def test_a_single_channel_leaves_room_for_the_histogram():
    figure = channels(torch.rand(9, 4, 4), torch.rand(9, 4, 4), count=1)
    assert figure.texts[0].get_text().startswith("the strongest of 9 channels")
    assert figure.axes[-1].get_window_extent().width > 300
    assert_readable(figure)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_gradients_of_zero_or_not_finite_are_drawn_all_the_same(value):
    assert_readable(channels(torch.rand(9, 4, 4), torch.full((9, 4, 4), value)))


def test_half_precision_and_tensors_of_a_graph_are_taken(activations, gradients):
    figure = channels(activations.half().requires_grad_(), gradients.bfloat16(), count=3)
    assert texts_in(figure) == texts_in(channels(activations, gradients, count=3))


@pytest.mark.parametrize(
    ("shapes", "count", "message"),
    [
        (((3, 2, 2), (3, 2, 3)), 1, r"activations is \(3, 2, 2\) and gradients \(3, 2, 3\); expected \(C,h,w\)"),
        (((1, 3, 2, 2), (1, 3, 2, 2)), 1, "of one image and one class"),
        (((0, 2, 2), (0, 2, 2)), 1, r"activations is \(0, 2, 2\)"),
        (((3, 2, 2), (3, 2, 2)), 0, "count=0 asks for no channel; give at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(shapes, count, message):
    with pytest.raises(ValueError, match=message):
        channels(*map(torch.zeros, shapes), count=count)
