"""`overlay` and `colorize`: the pixels of OpenCV's recipe, the ranges they accept, and the errors they raise."""

import cv2
import matplotlib
import numpy
import pytest
import torch
from support.opencv_recipe import as_recipe_input, assert_within_one_level, recipe
from support.refusals import assert_says
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gradcam_fast import overlay
from gradcam_fast.visual.colormaps import colorize, colormap_table

HOT, COLD = [128, 0, 0], [0, 0, 128]


@pytest.fixture
def photos():
    return torch.randint(0, 256, (2, 3, 9, 14), dtype=torch.uint8)


@pytest.fixture
def heatmaps():
    return torch.rand(2, 9, 14)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_every_pixel_is_that_of_opencv(photos, heatmaps, alpha):
    blend = overlay(photos, heatmaps, alpha=alpha)
    for i in range(2):
        expected = recipe(as_recipe_input(photos[i]), heatmaps[i].numpy(), alpha)
        assert_within_one_level(blend[i], torch.from_numpy(expected).permute(2, 0, 1))


def test_all_256_colours_of_jet_are_those_of_opencv():
    levels = torch.arange(256) / 255
    bgr = cv2.applyColorMap(numpy.uint8(255 * levels.numpy())[:, None], cv2.COLORMAP_JET)
    expected = torch.from_numpy(bgr[:, 0, ::-1].copy()).T
    assert torch.equal(colorize(levels[None])[:, 0], expected)


def test_a_single_hot_pixel_is_red_at_its_place_and_nowhere_else():
    heatmap = torch.zeros(1, 5, 7)
    heatmap[0, 3, 1] = 1
    blend = overlay(torch.zeros(1, 3, 5, 7), heatmap, alpha=1.0)[0]
    red = blend[0] > blend[2]
    assert red.nonzero().tolist() == [[3, 1]]
    assert blend[:, 3, 1].tolist() == HOT
    assert blend[:, 0, 0].tolist() == COLD


def test_the_heatmap_is_seen_where_the_image_is_black_and_the_image_where_alpha_is_zero(photos, heatmaps):
    assert torch.equal(overlay(photos, heatmaps, alpha=0.0), photos)
    assert torch.equal(overlay(torch.zeros_like(photos), heatmaps, alpha=1.0), colorize(heatmaps))


def test_alpha_may_be_a_tensor_of_the_heatmaps_shape(photos, heatmaps):
    alpha = torch.zeros(2, 9, 14)
    alpha[0] = 0.3
    alpha[1, 2:5, 6] = 1.0
    blend = overlay(photos, heatmaps, alpha=alpha)
    assert torch.equal(blend[0], overlay(photos, heatmaps, alpha=0.3)[0])
    assert torch.equal(blend[1, :, 2:5, 6], colorize(heatmaps)[1, :, 2:5, 6])
    blend[1, :, 2:5, 6] = photos[1, :, 2:5, 6]
    assert torch.equal(blend[1], photos[1])


def test_alpha_may_be_the_k_heatmaps_or_a_lone_one(photos, heatmaps):
    several = torch.rand(2, 3, 9, 14)
    blend = overlay(photos, several, alpha=several)
    for k in range(3):
        assert torch.equal(blend[:, k], overlay(photos, several[:, k], alpha=several[:, k]))
    expected = overlay(photos[:1], heatmaps[:1], alpha=heatmaps[:1])
    assert torch.equal(overlay(photos[0], heatmaps[0], alpha=heatmaps[0]), expected)


def test_alpha_may_be_a_numpy_number(photos, heatmaps):
    assert torch.equal(overlay(photos, heatmaps, alpha=numpy.float32(0.25)), overlay(photos, heatmaps, alpha=0.25))


def test_an_alpha_of_nan_shows_the_image_and_one_of_more_than_1_the_colour(photos, heatmaps):
    alpha = torch.full((2, 9, 14), torch.nan)
    alpha[1] = 1.2
    blend = overlay(photos, heatmaps, alpha=alpha)
    assert torch.equal(blend[0], photos[0]) and torch.equal(blend[1], colorize(heatmaps)[1])


class Devices(TorchDispatchMode):
    """Records the devices of all inputs and outputs of all operations."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = tree_leaves((args, kwargs, result))
        self.seen |= {tensor.device.type for tensor in tensors if isinstance(tensor, torch.Tensor)}
        return result


@pytest.mark.parametrize("values", [{}, {"mean": [0.4, 0.5, 0.6], "std": 0.2}])
def test_nothing_is_read_from_or_sent_to_an_accelerator(values):
    # The meta device has no values: reading one raises. Tensors that come from the host are seen by Devices.
    images, heatmap = torch.rand(2, 3, 4, 5, device="meta"), torch.rand(2, 4, 5, device="meta")
    colormap_table("jet", images.device)
    with Devices() as devices:
        blend = overlay(images, heatmap, alpha=heatmap, **values)
    assert devices.seen == {"meta"}
    assert (blend.device.type, blend.shape, blend.dtype) == ("meta", (2, 3, 4, 5), torch.uint8)


def test_levels_fractions_and_normalised_images_give_the_same_picture(photos, heatmaps):
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    expected = overlay(photos, heatmaps)
    fractions = photos / 255
    normalised = (fractions - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert_within_one_level(overlay(fractions, heatmaps), expected)
    assert_within_one_level(overlay(fractions.half(), heatmaps), expected)
    assert_within_one_level(overlay(normalised, heatmaps, mean=mean, std=std), expected)
    assert_within_one_level(overlay(2 * fractions - 1, heatmaps, mean=0.5, std=0.5), expected)


def test_a_gray_image_is_drawn_as_its_three_equal_channels(photos, heatmaps):
    gray = photos[:, :1]
    assert torch.equal(overlay(gray, heatmaps), overlay(gray.expand(-1, 3, -1, -1), heatmaps))


def test_k_heatmaps_give_k_pictures_of_each_image(photos):
    heatmaps = torch.rand(2, 4, 9, 14)
    blend = overlay(photos, heatmaps)
    assert blend.shape == (2, 4, 3, 9, 14)
    for k in range(4):
        assert torch.equal(blend[:, k], overlay(photos, heatmaps[:, k]))


def test_one_image_and_one_map_are_a_batch_of_one(photos, heatmaps):
    assert torch.equal(overlay(photos[0], heatmaps[0]), overlay(photos[:1], heatmaps[:1]))


def test_memory_layout_changes_nothing_and_the_result_is_contiguous(photos, heatmaps):
    expected = overlay(photos, heatmaps)
    sliced = torch.rand(2, 18, 14)
    sliced[:, ::2] = heatmaps
    blend = overlay(photos.contiguous(memory_format=torch.channels_last), sliced[:, ::2])
    assert torch.equal(blend, expected)
    assert blend.is_contiguous()


def test_an_empty_batch_gives_an_empty_batch():
    assert overlay(torch.rand(0, 3, 4, 5), torch.rand(0, 4, 5)).shape == (0, 3, 4, 5)


def test_arguments_are_left_as_they_were_and_no_graph_is_made(photos, heatmaps):
    images = (photos / 255).requires_grad_()
    before = images.detach().clone(), heatmaps.clone()
    assert not overlay(images, heatmaps).requires_grad
    assert torch.equal(images, before[0]) and torch.equal(heatmaps, before[1])


def test_overshoot_of_resizing_is_clamped_and_nan_is_cold():
    images = torch.tensor([-0.1, 0.0, 1.0, 1.1]).view(1, 1, 1, 4)
    assert overlay(images, torch.zeros(1, 1, 4), alpha=0.0)[0, 0, 0].tolist() == [0, 0, 255, 255]
    heatmap = torch.tensor([[[-0.1, 0.0, 1.0, 1.1, float("nan")]]])
    assert colorize(heatmap)[0, :, 0].T.tolist() == [COLD, COLD, HOT, HOT, COLD]


@pytest.mark.parametrize("name", ["jet", "viridis", "twilight_shifted"])
def test_an_opencv_colormap_is_opencv_s(name):
    table = colormap_table(name, torch.device("cpu"))
    bgr = cv2.applyColorMap(numpy.arange(256, dtype=numpy.uint8)[:, None], getattr(cv2, f"COLORMAP_{name.upper()}"))
    assert table[:, [2, 1, 0]].tolist() == bgr[:, 0].tolist()


@pytest.mark.parametrize("name", ["coolwarm", "Reds", "tab10"])
def test_other_colormaps_are_matplotlib_s(name):
    levels = torch.tensor([[0, 40, 128, 200, 255]]) / 255
    expected = matplotlib.colormaps[name](levels.numpy(), bytes=True)[..., :3]
    assert colorize(levels, name).permute(1, 2, 0).tolist() == expected.tolist()


def test_a_colormap_is_made_once_for_each_device():
    assert colormap_table("hot", torch.device("cpu")) is colormap_table("hot", torch.device("cpu"))


def test_the_message_for_an_unknown_colormap_lists_similar_names_and_all_of_opencv():
    with pytest.raises(
        ValueError, match=r"'virdis' is unknown \(did you mean viridis.*choose one of autumn, bone, .*jet"
    ):
        colorize(torch.zeros(2, 2), "virdis")


IMAGES, MAP = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((IMAGES, MAP), {"alpha": 1.5}, r"alpha=1\.5 is outside \[0, 1\]"),
        ((IMAGES, MAP), {"alpha": float("nan")}, "alpha=nan is outside"),
        (
            (IMAGES, MAP),
            {"alpha": MAP[0]},
            r"alpha has shape \(4, 5\) and dtype torch\.float32; .* heatmap's shape \(2, 4, 5\)",
        ),
        ((IMAGES, MAP), {"alpha": MAP.long()}, r"alpha has shape \(2, 4, 5\) and dtype torch\.int64"),
        ((IMAGES, MAP), {"alpha": MAP + 2}, "alpha ranges from 2 to 2"),
        ((IMAGES, MAP), {"alpha": MAP.to("meta")}, "alpha is on meta but heatmap is on cpu"),
        ((torch.zeros(2, 4, 4, 5), MAP), {}, r"images has shape \(2, 4, 4, 5\); expected \(B,3,H,W\)"),
        ((torch.zeros(5), MAP), {}, r"images has shape \(5,\)"),
        ((IMAGES, torch.zeros(5)), {}, r"heatmap has shape \(5,\); expected \(B,H,W\)"),
        ((IMAGES, MAP[:1]), {}, "one heatmap per image"),
        ((IMAGES, torch.zeros(2, 2, 3)), {}, r"has other pixels than images .*box=.*Preprocess.*box='whole'"),
        ((IMAGES, MAP), {"box": "all"}, "box='all' is unknown"),
        ((IMAGES, MAP), {"box": (1, 2, 3)}, r"box has shape \(2, 3\) for 2 photos; give \(left, top, right, bottom\)"),
        ((IMAGES, MAP), {"box": (3, 0, 3, 4)}, r"box=\(3, 0, 3, 4\) is empty"),
        (([IMAGES[0]], MAP), {}, r"heatmap has shape \(2, 4, 5\) for a list of 1 photos"),
        ((IMAGES, MAP.to("meta")), {}, "images is on cpu but heatmap is on meta"),
        ((IMAGES + 200, MAP), {}, "images ranges from 200 to 200.*divide 0..255 levels by 255"),
        ((IMAGES - 2, MAP), {}, "give mean and std if they are normalised"),
        ((IMAGES, MAP + 3), {}, "heatmap ranges from 3 to 3"),
        ((IMAGES, MAP), {"mean": 0.5}, "mean and std belong together"),
        ((IMAGES, MAP), {"mean": [0.5, 0.5], "std": 0.5}, "mean has 2 values for 3 channels"),
        ((IMAGES.byte(), MAP), {"mean": 0.5, "std": 0.5}, "uint8 images cannot have been normalised"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        overlay(*arguments, **options)


def test_integer_images_and_heatmaps_and_an_alpha_in_words_are_refused():
    with pytest.raises(TypeError, match=r"images has dtype torch\.int64; give uint8"):
        overlay(IMAGES.long(), MAP)
    with pytest.raises(TypeError, match=r"alpha='map' is a str; give a number from 0 to 1, or a tensor"):
        overlay(IMAGES, MAP, alpha="map")
    with pytest.raises(TypeError, match=r"heatmap has dtype torch\.uint8; give a floating heatmap"):
        overlay(IMAGES, MAP.byte())


BATCH = torch.zeros(3, 3, 16, 16)


@pytest.mark.parametrize(
    ("options", "error", "parts"),
    [
        ({"colormap": "rainbows"}, ValueError, ("'rainbows'", "rainbow", "jet")),
        ({"alpha": 1.5}, ValueError, ("alpha", "1.5", "1")),
        ({"images": 3}, TypeError, ("images", "int", "(B,3,H,W)", "torch.from_numpy", "permute")),
        ({"box": 3}, TypeError, ("box=3", "int", "left, top, right, bottom")),
        ({"heatmap": [[0.5]]}, TypeError, ("heatmap", "list", "(B,H,W)", "tensor")),
        ({"mean": "x", "std": 1.0}, TypeError, ("mean='x'", "number", "channel")),
        ({"mean": 0.5, "std": [1, 0, 1]}, ValueError, ("std=[1, 0, 1]", "not positive", "were divided")),
        ({"images": BATCH[:2]}, ValueError, ("(2, 3, 16, 16)", "(3, 16, 16)")),
    ],
)
def test_every_message_says_what_came_and_what_to_give(options, error, parts):
    with pytest.raises(error) as refusal:
        overlay(**{"images": BATCH, "heatmap": torch.zeros(3, 16, 16)} | options)
    assert_says(refusal, error, parts)


def test_a_gray_image_may_lack_its_channel():
    gray, heatmap = torch.randint(0, 256, (9, 14), dtype=torch.uint8), torch.rand(9, 14)
    expected = overlay(gray.expand(1, 3, 9, 14), heatmap[None])
    for image in (gray, gray[None], gray[None, None], gray / 255, gray.numpy(), [gray[None]]):
        shown = overlay(image, heatmap[None])
        assert torch.equal(shown[0], expected[0])
