"""The network sees what torchvision and timm would show it, and `seen` is that part of the photo, to the pixel."""

import numpy
import pytest
import skimage.data
import timm
import timm.data
import torch
from PIL import Image
from support.refusals import assert_says
from torchvision.models import get_weight

from gradcam_fast.cli.networks.preprocessing import Preprocessing

CHELSEA = Image.fromarray(skimage.data.chelsea())  # 451 x 300
PHOTOS = {
    "wide": CHELSEA,
    "tall": CHELSEA.rotate(90, expand=True),
    "square": Image.fromarray(skimage.data.astronaut()),  # 512 x 512
    "panorama": CHELSEA.resize((700, 90)),
    "tiny": CHELSEA.resize((5, 3)),
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("photo", PHOTOS)
@pytest.mark.parametrize(
    "weights",
    [
        "ResNet18_Weights.IMAGENET1K_V1",  # bilinear, 224 of 256
        "ResNet50_Weights.IMAGENET1K_V2",  # bilinear, 224 of 232
        "EfficientNet_B1_Weights.IMAGENET1K_V2",  # bilinear, 240 of 255
        "EfficientNet_B2_Weights.IMAGENET1K_V1",  # bicubic, 288 of 288
        "Inception_V3_Weights.IMAGENET1K_V1",  # bilinear, 299 of 342
    ],
)
def test_photos_are_prepared_as_by_torchvision(weights, photo):
    transform = get_weight(weights).transforms()
    preprocess = Preprocessing(
        size=(*transform.crop_size, *transform.crop_size),
        mean=transform.mean,
        std=transform.std,
        crop=transform.crop_size[0] / transform.resize_size[0],
        interpolation=transform.interpolation.value,
    )
    assert torch.equal(preprocess([PHOTOS[photo]])[0], transform(PHOTOS[photo]))


@pytest.mark.parametrize("photo", PHOTOS)
@pytest.mark.parametrize(
    "name",
    [
        "resnet18",  # bicubic, 0.95, which is 235 pixels and not quite 224 / 0.95
        "vit_tiny_patch16_224",  # bicubic, 0.9, mean and std 0.5
        "mobilenetv3_small_075",  # bicubic, 0.875
        "efficientnet_lite0",  # bicubic, 0.875
        "inception_v4",  # bicubic, 0.875, 299 pixels
        "tf_efficientnetv2_b3",  # squash, 0.904
        "vit_base_patch16_siglip_224",  # squash, the whole photo
    ],
)
def test_photos_are_prepared_as_by_timm(name, photo):
    config = timm.get_pretrained_cfg(name).to_dict()
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=config))
    preprocess = Preprocessing.from_config(config)
    assert torch.equal(preprocess([PHOTOS[photo]])[0], transform(PHOTOS[photo]))


def test_every_configuration_of_timm_but_framed_ones_has_its_preprocessing():
    framed = 0
    for name in timm.list_models(pretrained=True):
        config = timm.get_pretrained_cfg(name).to_dict()
        if config["crop_mode"] == "border" or config["crop_pct"] > 1:
            framed += 1
            with pytest.raises(ValueError, match=r"pads its photos .* give crop="):
                Preprocessing.from_config(config)
            continue
        preprocess = Preprocessing.from_config(config)
        side = preprocess.size[0]
        resized = timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=config)).transforms[0]
        expected = numpy.atleast_1d(resized.size)[0]
        assert (side / preprocess.crop if preprocess.crop else side) == pytest.approx(expected), name
    assert framed < 20


def test_without_a_crop_the_whole_photo_is_squeezed():
    preprocess = Preprocessing(size=(20, 30), mean=(0, 0, 0), std=(1, 1, 1))
    expected = torch.from_numpy(numpy.array(CHELSEA.resize((30, 20), Image.Resampling.BICUBIC))).permute(2, 0, 1) / 255
    torch.testing.assert_close(preprocess([CHELSEA])[0], expected)
    assert preprocess.seen(CHELSEA).tobytes() == CHELSEA.tobytes()


def test_photos_of_all_sizes_become_one_batch_each_as_alone():
    preprocess = Preprocessing((24, 32), MEAN, STD, crop=0.8, interpolation="bilinear")
    batch = preprocess(list(PHOTOS.values()))
    assert batch.shape == (5, 3, 24, 32) and batch.dtype == torch.float32
    for image, photo in zip(batch, PHOTOS.values(), strict=True):
        assert torch.equal(image, preprocess([photo])[0])


@pytest.mark.parametrize(
    ("size", "box"),
    [
        # 300 rows become 283, of which 30 to 254 are seen; 400 columns 377, of which 76 to 300 are.
        ((400, 300), (81, 32, 318, 269)),
        ((300, 400), (32, 81, 269, 318)),
        ((1, 1), (0, 0, 1, 1)),
        ((2, 1000), (0, 499, 2, 501)),
    ],
)
def test_the_part_that_is_seen_is_the_middle(size, box):
    assert Preprocessing((224, 224), MEAN, STD, crop=0.79).seen_box(size) == box
    assert Preprocessing((224, 224), MEAN, STD, crop=0.79).seen(Image.new("RGB", size)).size == (
        box[2] - box[0],
        box[3] - box[1],
    )


@pytest.mark.parametrize("resized", [256, 354, 375, 400])
def test_a_share_that_cannot_be_stored_exactly_cuts_no_other_pixels(resized):
    photo = CHELSEA.resize((resized, resized))
    edge = (resized - 224) / 2
    expected = photo.crop((round(edge), round(edge), round(edge) + 224, round(edge) + 224))
    image = Preprocessing((224, 224), (0, 0, 0), (1, 1, 1), crop=224 / resized)([photo])[0]
    assert torch.equal((image * 255).round().byte(), torch.from_numpy(numpy.array(expected)).permute(2, 0, 1))


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (451, 300)])
@pytest.mark.parametrize("shape", [(96, 96), (64, 96), (96, 64)])
@pytest.mark.parametrize("squeeze", [False, True])
def test_a_bright_square_is_at_the_same_place_in_what_is_seen_and_in_the_input(size, shape, squeeze):
    preprocess = Preprocessing(shape, (0, 0, 0), (1, 1, 1), crop=0.75, interpolation="bilinear", squeeze=squeeze)
    photo = Image.new("RGB", size)
    # Off the middle, so that a shift, a flip or a forgotten crop would show.
    x, y, side = size[0] // 2 + 20, size[1] // 2 - 60, 40
    photo.paste((255, 255, 255), (x, y, x + side, y + side))
    seen, given = preprocess.seen(photo), preprocess([photo])[0, 0]
    within = numpy.array(seen)[:, :, 0] > 127
    assert within.sum() == side * side
    for along, seen_length, given_length in zip((0, 1), reversed(seen.size), shape, strict=True):
        seen_centre = numpy.nonzero(within)[along].mean() + 0.5
        weights = given.sum(1 - along)
        centre = float((weights * (torch.arange(given_length) + 0.5)).sum() / weights.sum())
        # Half a pixel of the photo, for the part seen starts and ends on whole ones.
        assert centre * seen_length / given_length == pytest.approx(seen_centre, abs=0.6)


def test_what_is_not_seen_does_not_reach_the_network():
    preprocess = Preprocessing((32, 32), MEAN, STD, crop=0.5, interpolation="bilinear")
    left, top, right, bottom = preprocess.seen_box(CHELSEA.size)
    # The kernel of the resize reaches over the edge by less than one input pixel, 300 / 64 of the photo's.
    other = Image.new("RGB", CHELSEA.size, "lime")
    other.paste(CHELSEA.crop((left - 5, top - 5, right + 5, bottom + 5)), (left - 5, top - 5))
    assert torch.equal(preprocess([other]), preprocess([CHELSEA]))
    other.paste((0, 255, 0), (left, top, left + 5, top + 5))
    assert not torch.equal(preprocess([other]), preprocess([CHELSEA]))


@pytest.mark.parametrize(
    ("choice", "parts"),
    [
        ({"size": (0, 224)}, ["size=(0, 224)", "at least 1"]),
        ({"std": (0.2, 0, 0.2)}, ["std=(0.2, 0, 0.2)", "above 0"]),
        ({"mean": (0.5,)}, ["mean=(0.5,)", "three numbers"]),
        ({"crop": 0}, ["crop=0", "(0,1]"]),
        ({"crop": 1.5}, ["crop=1.5", "(0,1]"]),
        ({"crop": "full"}, ["crop='full'", "(0,1]"]),
        ({"interpolation": "linear"}, ["interpolation='linear'", "bilinear, hamming, bicubic"]),
    ],
)
def test_what_cannot_be_is_refused(choice, parts):
    with pytest.raises(ValueError) as refusal:
        Preprocessing(**{"size": (8, 8), "mean": MEAN, "std": STD, **choice})
    assert_says(refusal, ValueError, parts)
