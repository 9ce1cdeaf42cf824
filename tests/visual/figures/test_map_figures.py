"""Maps of one photo side by side: layers of several depths, and the map before and after its ReLU."""

import pytest
import torch
from support.drawn import assert_readable, pictures_in, texts_in

from gradcam_fast import overlay
from gradcam_fast.visual.colormaps import colorize
from gradcam_fast.visual.figures import layers, relu


def enlarged(heatmap, size):
    return torch.nn.functional.interpolate(heatmap[None, None], size, mode="bilinear")[0, 0]


def repeated(picture, times):
    return picture.repeat_interleave(times, -2).repeat_interleave(times, -1)


def test_each_layer_s_map_is_drawn_cell_by_cell_and_below_it_over_the_photo(tmp_path):
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
    figure = layers(photo, [torch.rand(7, 7)] * count, names, edges=True)
    assert [text.replace(" ", "") for text in texts_in(figure)] == ["photo", *(f"{name}7x7" for name in names)]
    assert len(figure.axes) == 1 + 2 * count
    assert len({round(axes.get_window_extent().x0) for axes in figure.axes}) <= 6
    assert_readable(figure)


def test_relu_takes_the_negative_away_and_zero_has_the_middle_colour_in_both(tmp_path):
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
    ("raw", "said"), [(torch.zeros(3, 3), "0 to 0"), (torch.full((3, 3), 1e-42), "1e-42 to 1e-42")]
)
def test_a_flat_or_minute_raw_map_is_drawn_all_the_same(raw, said, tmp_path):
    figure = relu(torch.zeros(3, 30, 30, dtype=torch.uint8), raw)
    assert texts_in(figure) == ["photo", f"before ReLU {said}", f"after ReLU {said}"]
    middle = colorize(torch.full((1, 1), 0.5), "coolwarm")
    assert torch.equal(pictures_in(figure, tmp_path / "a.png")[1], middle.expand(3, 384, 384))
    assert_readable(figure)


PHOTO = torch.zeros(3, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: layers(PHOTO, [torch.zeros(2, 2)], ["a", "b"]), r"heatmaps are \(2, 2\) for 2 names; expected one"),
        (lambda: layers(PHOTO, [torch.zeros(1, 2, 2)], ["a"]), r"heatmaps are \(1, 2, 2\) for 1 names"),
        (lambda: layers(PHOTO, [], []), "heatmaps are none for 0 names"),
        (lambda: layers(PHOTO.float(), [torch.zeros(2, 2)], ["a"]), r"photo is \(3, 8, 8\) of torch.float32"),
        (lambda: relu(PHOTO, torch.zeros(1, 2, 2)), r"raw is \(1, 2, 2\) of torch.float32; expected one floating map"),
        (lambda: relu(PHOTO, torch.zeros(2, 2, dtype=torch.int)), r"raw is \(2, 2\) of torch.int32"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
