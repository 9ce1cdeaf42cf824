"""Figures of layers: heatmaps of several depths, a map before and after its ReLU, the strongest channels in order."""

from collections import Counter

import pytest
import torch
from support.drawn import assert_readable, pictures_in, texts_in

from gradcam_fast import overlay
from gradcam_fast.visual.colormaps import colorize
from gradcam_fast.visual.figures import channels, layers, relu


def enlarged(heatmap, size):
    return torch.nn.functional.interpolate(heatmap[None, None], size, mode="bilinear")[0, 0]


def repeated(picture, times):
    return picture.repeat_interleave(times, -2).repeat_interleave(times, -1)


def test_the_map_of_every_layer_is_drawn_cell_by_cell_and_below_over_the_photo(tmp_path):
    photo = torch.randint(0, 256, (3, 128, 192), dtype=torch.uint8)
    heatmaps = [torch.rand(8, 12), torch.rand(2, 3)]
    figure = layers(photo, heatmaps, ["layer3", "layer4"], colormap="viridis", alpha=0.3)
    assert texts_in(figure) == ["photo", "layer3 8 x 12", "layer4 2 x 3"]
    shown, fine, coarse, fine_over, coarse_over = pictures_in(figure, tmp_path / "a.png")
    assert torch.equal(shown, photo)
    assert torch.equal(fine, repeated(colorize(heatmaps[0], "viridis"), 16))
    assert torch.equal(coarse, repeated(colorize(heatmaps[1], "viridis"), 64))
    for drawn, heatmap in ((fine_over, heatmaps[0]), (coarse_over, heatmaps[1])):
        expected = overlay(photo, enlarged(heatmap, (128, 192)), colormap="viridis", alpha=0.3)[0]
        assert torch.equal(drawn, expected)


def test_the_hot_cell_of_every_layer_lies_on_the_bright_square(tmp_path):
    photo = torch.zeros(3, 128, 192, dtype=torch.uint8)
    photo[:, 32:64, 96:128] = 255
    heatmaps = [torch.zeros(4, 6), torch.zeros(8, 12), torch.zeros(128, 192)]
    for heatmap, cell in zip(heatmaps, (32, 16, 1), strict=True):
        heatmap[32 // cell : 64 // cell, 96 // cell : 128 // cell] = 1
    _, *maps, _, _, _ = pictures_in(layers(photo, heatmaps, ["a", "b", "c"]), tmp_path / "a.png")
    for drawn in maps:
        red = (drawn[0] > drawn[2]).nonzero()
        assert (red.amin(0).tolist(), red.amax(0).tolist(), len(red)) == ([32, 96], [63, 127], 32 * 32)


@pytest.mark.parametrize("size", [(300, 451), (1000, 50), (20, 32)])
@pytest.mark.parametrize("count", [1, 5, 6, 13])
def test_any_number_of_layers_is_drawn_in_order_and_can_be_read(size, count):
    names = [f"backbone.features.denseblock{i}.denselayer24.a_convolution" for i in range(count)]
    photo = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    figure = layers(photo, [torch.rand(7, 7)] * count, names, edges=True, box="whole")
    assert [text.replace(" ", "") for text in texts_in(figure)] == ["photo", *(f"{name}7x7" for name in names)]
    assert len(figure.axes) == 1 + 2 * count
    rows = Counter(round(axes.get_window_extent().y0) for axes in figure.axes)
    assert max(rows.values()) <= 6
    assert_readable(figure)


def test_relu_removes_negative_values_and_zero_has_the_middle_colour_before_and_after(tmp_path):
    photo = torch.randint(0, 256, (3, 384, 384), dtype=torch.uint8)
    raw = torch.tensor([[-2.0, 0.0], [1.0, 4.0]])
    figure = relu(photo, raw, alpha=0.4)
    assert texts_in(figure) == ["photo", "before ReLU -2 to 4", "after ReLU 0 to 4"]
    shown, before, after, before_over, after_over = pictures_in(figure, tmp_path / "a.png")
    assert torch.equal(shown, photo)
    expected = torch.tensor([[0.25, 0.5], [0.625, 1.0]])
    assert torch.equal(before, repeated(colorize(expected, "coolwarm"), 192))
    assert torch.equal(before_over, overlay(photo, enlarged(expected, (384, 384)), colormap="coolwarm", alpha=0.4)[0])
    expected[0, 0] = 0.5
    assert torch.equal(after, repeated(colorize(expected, "coolwarm"), 192))
    assert torch.equal(after_over, overlay(photo, enlarged(expected, (384, 384)), colormap="coolwarm", alpha=0.4)[0])


@pytest.mark.parametrize(
    ("raw", "caption"), [(torch.zeros(3, 3), "0 to 0"), (torch.full((3, 3), 1e-42), "1e-42 to 1e-42")]
)
def test_a_flat_or_minute_raw_map_is_drawn_too(raw, caption, tmp_path):
    figure = relu(torch.zeros(3, 30, 30, dtype=torch.uint8), raw)
    assert texts_in(figure) == ["photo", f"before ReLU {caption}", f"after ReLU {caption}"]
    middle = colorize(torch.full((1, 1), 0.5), "coolwarm")
    assert torch.equal(pictures_in(figure, tmp_path / "a.png")[1], middle.expand(3, 384, 384))
    assert_readable(figure)


PHOTO = torch.zeros(3, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda: layers(PHOTO, [torch.zeros(2, 2)], ["a", "b"]),
            r"heatmaps have shapes \(2, 2\) and len\(names\) is 2; expected one",
        ),
        (
            lambda: layers(PHOTO, [torch.zeros(1, 2, 2)], ["a"]),
            r"heatmaps have shapes \(1, 2, 2\) and len\(names\) is 1",
        ),
        (lambda: layers(PHOTO, [], []), r"heatmaps have shapes none and len\(names\) is 0"),
        (
            lambda: layers(PHOTO + 2.0, [torch.zeros(2, 2)], ["a"]),
            r"a photo ranges from 2 to 2; give floating values in \[0,1\]",
        ),
        (
            lambda: relu(PHOTO, torch.zeros(1, 2, 2)),
            r"raw has shape \(1, 2, 2\) and dtype torch.float32; expected one floating map",
        ),
        (lambda: relu(PHOTO, torch.zeros(2, 2, dtype=torch.int)), r"raw has shape \(2, 2\) and dtype torch.int32"),
    ],
)
def test_wrong_arguments_of_layers_and_relu_are_refused_in_a_sentence(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


@pytest.fixture
def activations():
    """Four channels of 2 x 2, the third of which is dead."""
    return torch.tensor([[[0.0, 1], [2, 4]], [[-3.0, 0], [0, 0]], [[0.0, 0], [0, 0]], [[1.0, 1], [1, 1]]])


@pytest.fixture
def gradients():
    """Gradients whose means are 1, -4, 9 and 0.5."""
    return torch.tensor([[[4.0, 0], [0, 0]], [[-4.0, -4], [-4, -4]], [[9.0, 9], [9, 9]], [[2.0, -1], [1, 0]]])


def test_the_strongest_channels_contribute_most_to_the_map_and_dead_ones_nothing(activations, gradients, tmp_path):
    figure = channels(activations, gradients, count=3)
    title, *captions, below = texts_in(figure)
    assert title.startswith("the 3 strongest of 4 channels")
    assert captions == [
        *("channel 1 -3 to 0", "channel 0 0 to 4", "channel 3 1 to 1"),
        *("weight -4 up to ±4", "weight 1 up to ±4", "weight 0.5 up to ±2"),
    ]
    assert below == "pooled gradients of all 4 channels"
    pictures = pictures_in(figure, tmp_path / "a.png")
    assert len(pictures) == 6
    assert torch.equal(pictures[0], repeated(colorize(torch.tensor([[0.0, 1], [1, 1]]), "viridis"), 80))
    assert torch.equal(pictures[1], repeated(colorize(activations[0] / 4, "viridis"), 80))
    assert torch.equal(pictures[2], repeated(colorize(torch.zeros(2, 2), "viridis"), 80))
    assert torch.equal(pictures[3], repeated(colorize(torch.zeros(2, 2), "coolwarm"), 80))
    assert torch.equal(pictures[4], repeated(colorize(torch.tensor([[1.0, 0.5], [0.5, 0.5]]), "coolwarm"), 80))
    assert torch.equal(pictures[5], repeated(colorize(torch.tensor([[1.0, 0.25], [0.75, 0.5]]), "coolwarm"), 80))


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
def test_gradients_of_zero_or_not_finite_are_drawn_too(value):
    assert_readable(channels(torch.rand(9, 4, 4), torch.full((9, 4, 4), value)))


def test_half_precision_and_tensors_of_a_graph_are_taken(activations, gradients):
    figure = channels(activations.half().requires_grad_(), gradients.bfloat16(), count=3)
    assert texts_in(figure) == texts_in(channels(activations, gradients, count=3))


@pytest.mark.parametrize(
    ("shapes", "count", "message"),
    [
        (((3, 2, 2), (3, 2, 3)), 1, r"activations has shape \(3, 2, 2\) and gradients \(3, 2, 3\); expected \(C,h,w\)"),
        (((1, 3, 2, 2), (1, 3, 2, 2)), 1, "of one image and one class"),
        (((0, 2, 2), (0, 2, 2)), 1, r"activations has shape \(0, 2, 2\)"),
        (((3, 2, 2), (3, 2, 2)), 0, "count=0 asks for no channel; give at least 1"),
    ],
)
def test_wrong_arguments_of_channels_are_refused_in_a_sentence(shapes, count, message):
    with pytest.raises(ValueError, match=message):
        channels(*map(torch.zeros, shapes), count=count)
