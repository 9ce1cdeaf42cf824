"""Images into and out of the model's form, and with maps drawn over them: the pixels of pytorch-grad-cam."""

import cv2
import numpy as np
import pytest

from gradcam_fast.compat.pytorch_grad_cam.sobel_cam import sobel_cam
from gradcam_fast.compat.pytorch_grad_cam.utils import image as ours

RANDOM = np.random.default_rng(0)
PHOTO = RANDOM.random((20, 30, 3))
MASK = np.float32(RANDOM.random((20, 30)))


@pytest.fixture
def theirs():
    return pytest.importorskip("pytorch_grad_cam.utils.image")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"use_rgb": True},
        {"colormap": cv2.COLORMAP_VIRIDIS, "use_rgb": True},
        {"image_weight": 0.0},
        {"image_weight": 1.0},
        {"image_weight": 0.7, "use_rgb": True},
    ],
)
def test_show_cam_on_image_gives_the_same_pixels(choices, dtype, theirs):
    photo = PHOTO.astype(dtype)
    expected = theirs.show_cam_on_image(photo, MASK, **choices)
    actual = ours.show_cam_on_image(photo, MASK, **choices)
    assert actual.dtype == np.uint8 and np.array_equal(actual, expected)


def test_show_cam_on_image_refuses_pixels_above_1_and_weights_outside_0_and_1():
    with pytest.raises(
        ValueError, match=r"img has values up to 25.*give floating values in \[0,1\], such as img / 255"
    ):
        ours.show_cam_on_image(PHOTO * 255, MASK)
    with pytest.raises(ValueError, match=r"image_weight=1.5 is outside \[0,1\]"):
        ours.show_cam_on_image(PHOTO, MASK, image_weight=1.5)


def test_a_black_image_alone_stays_black():
    assert not ours.show_cam_on_image(PHOTO * 0, MASK, image_weight=1).any()


@pytest.mark.parametrize(
    "photo", [np.uint8(PHOTO * 255), np.float32(PHOTO), PHOTO, PHOTO[::-1], np.uint8(PHOTO[..., 0] * 255)]
)
@pytest.mark.parametrize("choices", [{}, {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}])
def test_preprocess_image_gives_the_same_tensor(photo, choices, theirs):
    if photo.ndim == 2:
        choices = {"mean": [0.5], "std": [0.25]}
    expected, actual = theirs.preprocess_image(photo, **choices), ours.preprocess_image(photo, **choices)
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    np.testing.assert_allclose(actual.numpy(), expected.numpy(), atol=1e-6)


def test_deprocess_image_gives_the_same_pixels(theirs):
    gradient = RANDOM.standard_normal((20, 30, 3))
    assert np.array_equal(ours.deprocess_image(gradient), theirs.deprocess_image(gradient))


@pytest.mark.parametrize("size", [None, (40, 50), (7, 3)])
def test_scale_cam_image_gives_the_same_maps(size, theirs):
    maps = np.float32(RANDOM.standard_normal((3, 5, 6)))
    maps[2] = 4
    expected, actual = theirs.scale_cam_image(maps, size), ours.scale_cam_image(maps, size)
    assert actual.dtype == np.float32 and np.array_equal(actual, expected)
    batch = maps[None]
    if size is not None:
        expected = theirs.scale_accross_batch_and_channels(batch, size)
        assert np.array_equal(ours.scale_accross_batch_and_channels(batch, size), expected)


def test_create_labels_legend_gives_the_same_texts(theirs):
    scores = RANDOM.random((3, 5))
    names = {i: f"class {i}, or c{i}, or {i}, and more" for i in range(5)}
    assert ours.create_labels_legend(scores, names, 3) == theirs.create_labels_legend(scores, names, 3)


def test_show_factorization_on_image_gives_the_same_pixels(theirs):
    explanations = np.float32(RANDOM.random((4, 20, 30)))
    colors = [RANDOM.random(3) for _ in range(4)]
    expected = theirs.show_factorization_on_image(PHOTO, explanations.copy(), colors, image_weight=0.3)
    kept = explanations.copy()
    actual = ours.show_factorization_on_image(PHOTO, explanations, colors, image_weight=0.3)
    assert np.array_equal(actual, expected) and np.array_equal(explanations, kept)


def test_show_factorization_on_image_has_colours_and_a_legend_of_its_own():
    pytest.importorskip("matplotlib")
    explanations = np.float32(RANDOM.random((3, 64, 64)))
    photo = RANDOM.random((64, 64, 3))
    picture = ours.show_factorization_on_image(photo, explanations, concept_labels=["a", "b", "c"])
    assert picture.shape == (64, 128, 3) and picture.dtype == np.uint8
    assert picture[:, 64:].std() > 1


def test_sobel_cam_gives_the_same_edges(theirs):
    theirs = pytest.importorskip("pytorch_grad_cam.sobel_cam")
    photo = np.uint8(PHOTO * 255)
    assert np.array_equal(sobel_cam(photo), theirs.sobel_cam(photo))
