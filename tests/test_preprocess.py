"""The network sees what torchvision and timm would show it, and `seen` is that part of the photo, to the pixel."""

import functools

import numpy
import pytest
import skimage.data
import timm
import timm.data
import torch
from PIL import Image
from support.refusals import assert_says
from torch import nn
from torchvision import transforms as v1
from torchvision.models import ResNet18_Weights, get_weight
from torchvision.transforms import InterpolationMode, v2

from gradcam_fast import Preprocess, exceptions
from gradcam_fast._preprocessing import steps
from gradcam_fast._preprocessing.sources import recipe_of
from gradcam_fast._preprocessing.steps import Resize, Window
from gradcam_fast._preprocessing.verification import verify

CHELSEA = Image.fromarray(skimage.data.chelsea())  # 451 x 300
PHOTOS = {
    "wide": CHELSEA,
    "tall": CHELSEA.rotate(90, expand=True),
    "square": Image.fromarray(skimage.data.astronaut()),  # 512 x 512
    "panorama": CHELSEA.resize((700, 90)),
    "tiny": CHELSEA.resize((5, 3)),
}
NEAREST, BICUBIC = InterpolationMode.NEAREST, InterpolationMode.BICUBIC
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def numbers(transform):
    """The numbers of a preset of torchvision."""
    return Preprocess(
        transform.crop_size[0],
        mean=transform.mean,
        std=transform.std,
        crop=transform.crop_size[0] / transform.resize_size[0],
        interpolation=transform.interpolation.value,
    )


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
    expected = transform(PHOTOS[photo])
    assert torch.equal(numbers(transform)(PHOTOS[photo]).images[0], expected)
    torch.testing.assert_close(of(weights)(PHOTOS[photo]).images[0], expected, rtol=0, atol=1e-5)


@functools.cache
def of(name):
    return Preprocess.of(get_weight(name) if name.endswith(("V1", "V2")) else timm.get_pretrained_cfg(name))


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
        "vit_medium_patch16_rope_reg1_gap_256",  # 0.95
    ],
)
def test_photos_are_prepared_as_by_timm(name, photo):
    config = timm.get_pretrained_cfg(name).to_dict()
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=config))
    torch.testing.assert_close(of(name)(PHOTOS[photo]).images[0], transform(PHOTOS[photo]), rtol=0, atol=1e-5)


def test_every_configuration_of_timm_can_be_read():
    """The transforms that timm makes of it, without running them; some pad with a border."""
    padded = 0
    for name in timm.list_models(pretrained=True):
        config = timm.get_pretrained_cfg(name).to_dict()
        resize, window, *others = recipe_of(config).steps
        assert isinstance(resize, Resize) and isinstance(window, Window) and not others, name
        assert window.size == tuple(config["input_size"][1:])
        padded += config["crop_mode"] == "border"
    assert padded > 0


def test_without_a_crop_the_whole_photo_is_squeezed():
    preprocess = Preprocess((20, 30), mean=(0, 0, 0), std=(1, 1, 1), fit="stretch", interpolation="bicubic")
    expected = torch.from_numpy(numpy.array(CHELSEA.resize((30, 20), Image.Resampling.BICUBIC))).permute(2, 0, 1) / 255
    torch.testing.assert_close(preprocess(CHELSEA).images[0], expected)
    assert preprocess.seen(CHELSEA).tobytes() == CHELSEA.tobytes()


def test_photos_of_all_sizes_become_one_batch_each_as_alone():
    preprocess = Preprocess((24, 32), crop=0.8)
    batch, boxes = preprocess(list(PHOTOS.values()))
    assert boxes.tolist() == [pytest.approx(preprocess.box(photo.size)) for photo in PHOTOS.values()]
    assert batch.shape == (5, 3, 24, 32) and batch.dtype == torch.float32
    for image, photo in zip(batch, PHOTOS.values(), strict=True):
        assert torch.equal(image, preprocess(photo).images[0])


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
    assert Preprocess(224, crop=0.79).seen_box(size) == box
    assert Preprocess(224, crop=0.79).seen(Image.new("RGB", size)).size == (
        box[2] - box[0],
        box[3] - box[1],
    )


@pytest.mark.parametrize("resized", [256, 354, 375, 400])
def test_a_share_that_cannot_be_stored_exactly_cuts_no_other_pixels(resized):
    photo = CHELSEA.resize((resized, resized))
    edge = (resized - 224) / 2
    expected = photo.crop((round(edge), round(edge), round(edge) + 224, round(edge) + 224))
    image = Preprocess(224, mean=(0,) * 3, std=(1,) * 3, crop=224 / resized)([photo]).images[0]
    assert torch.equal((image * 255).round().byte(), torch.from_numpy(numpy.array(expected)).permute(2, 0, 1))


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (451, 300)])
@pytest.mark.parametrize("shape", [(96, 96), (64, 96), (96, 64)])
@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_a_bright_square_is_at_the_same_place_in_what_is_seen_and_in_the_input(size, shape, fit):
    preprocess = Preprocess(shape, mean=(0,) * 3, std=(1,) * 3, crop=0.75, fit=fit)
    photo = Image.new("RGB", size)
    # Off the middle, so that a shift, a flip or a forgotten crop would show.
    x, y, side = size[0] // 2 + 20, size[1] // 2 - 60, 40
    photo.paste((255, 255, 255), (x, y, x + side, y + side))
    seen, given = preprocess.seen(photo), preprocess(photo).images[0, 0]
    within = numpy.array(seen)[:, :, 0] > 127
    assert within.sum() == side * side
    for along, seen_length, given_length in zip((0, 1), reversed(seen.size), shape, strict=True):
        seen_centre = numpy.nonzero(within)[along].mean() + 0.5
        weights = given.sum(1 - along)
        centre = float((weights * (torch.arange(given_length) + 0.5)).sum() / weights.sum())
        # Half a pixel of the photo, for the part seen starts and ends on whole ones.
        assert centre * seen_length / given_length == pytest.approx(seen_centre, abs=0.6)


def test_what_is_not_seen_does_not_reach_the_network():
    preprocess = Preprocess(32, crop=0.5)
    left, top, right, bottom = preprocess.seen_box(CHELSEA.size)
    # The kernel of the resize reaches over the edge by less than one input pixel, 300 / 64 of the photo's.
    other = Image.new("RGB", CHELSEA.size, "lime")
    other.paste(CHELSEA.crop((left - 5, top - 5, right + 5, bottom + 5)), (left - 5, top - 5))
    assert torch.equal(preprocess(other).images, preprocess(CHELSEA).images)
    other.paste((0, 255, 0), (left, top, left + 5, top + 5))
    assert not torch.equal(preprocess(other).images, preprocess(CHELSEA).images)


@pytest.mark.parametrize(
    ("options", "size", "box"),
    [
        ({"fit": "letterbox"}, (640, 480), (0, -80, 640, 560)),
        ({"fit": "letterbox"}, (480, 640), (-80, 0, 560, 640)),
        ({"fit": "letterbox", "place": "corner"}, (640, 480), (0, 0, 640, 640)),
        ({"fit": "letterbox", "place": "corner"}, (480, 640), (0, 0, 640, 640)),
        ({"fit": "stretch"}, (640, 480), (0, 0, 640, 480)),
        ({"fit": "stretch", "crop": 0.5}, (640, 480), (160, 120, 480, 360)),
        ({}, (640, 480), (80, 0, 560, 480)),
        ({"crop": 0.5}, (480, 640), (120, 200, 360, 440)),
    ],
)
def test_the_box_is_what_the_input_shows(options, size, box):
    assert Preprocess(120, **options).box(size) == pytest.approx(box)


def test_padding_has_its_colour_and_none_is_zero_after_normalisation():
    photo = Image.new("RGB", (40, 20), (255, 0, 0))
    gray = Preprocess(20, fit="letterbox", fill=114)(photo).images[0]
    assert gray[:, 0, 0].tolist() == pytest.approx([(114 / 255 - m) / s for m, s in zip(MEAN, STD, strict=True)])
    coloured = Preprocess(20, fit="letterbox", fill=(1, 2, 3), mean=(0,) * 3, std=(1,) * 3)(photo).images[0]
    assert (coloured[:, -1, -1] * 255).tolist() == pytest.approx([1, 2, 3])
    blank = Preprocess(20, fit="letterbox", fill=None, place="corner")(photo).images[0]
    assert blank[:, 10:].eq(0).all() and blank[:, :10].ne(0).all()


def as_kinds(photo):
    """The same photo in every form that is taken."""
    array = numpy.array(photo)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    return {
        "PIL": photo,
        "uint8 array": array,
        "float array": array.astype(numpy.float64) / 255,
        "channels first": numpy.ascontiguousarray(array.transpose(2, 0, 1)),
        "uint8 tensor": tensor,
        "float tensor": tensor / 255,
        "half tensor": (tensor / 255).half(),
        "RGBA": numpy.dstack([array, numpy.full(array.shape[:2], 255, numpy.uint8)]),
    }


@pytest.mark.parametrize("kind", as_kinds(CHELSEA))
def test_a_photo_may_come_in_any_form(kind):
    preprocess = Preprocess(32)
    expected = preprocess(CHELSEA)
    for photos in (as_kinds(CHELSEA)[kind], [as_kinds(CHELSEA)[kind]]):
        images, boxes = preprocess(photos)
        assert torch.equal(images, expected.images) and torch.equal(boxes, expected.boxes)


def test_gray_photos_come_in_any_form_too():
    gray = CHELSEA.convert("L")
    array = numpy.array(gray)
    expected = Preprocess(32)(gray).images
    assert torch.equal(expected[:, 0] * STD[0] + MEAN[0], expected[:, 0] * STD[0] + MEAN[0])
    for photo in (array, array[..., None], torch.from_numpy(array), torch.from_numpy(array)[None], array / 255):
        assert torch.equal(Preprocess(32)(photo).images, expected)


def test_a_path_and_a_batch_are_photos_too(tmp_path):
    CHELSEA.save(tmp_path / "a.png")
    expected = Preprocess(32)([CHELSEA, CHELSEA]).images
    array = numpy.array(CHELSEA)
    assert torch.equal(Preprocess(32)([tmp_path / "a.png", str(tmp_path / "a.png")]).images, expected)
    assert torch.equal(Preprocess(32)(numpy.stack([array, array])).images, expected)
    assert torch.equal(Preprocess(32)(torch.from_numpy(numpy.stack([array] * 2)).permute(0, 3, 1, 2)).images, expected)


def rotated(photo, orientation):
    """The photo as a camera stores it that has this EXIF orientation."""
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = photo.transpose(back[orientation]) if orientation > 1 else photo.copy()
    stored.getexif()[0x0112] = orientation
    return stored


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright_as_files_and_as_images(tmp_path, orientation):
    stored = rotated(CHELSEA, orientation)
    stored.save(tmp_path / "a.png", exif=stored.getexif())
    expected = Preprocess(32, crop=0.5)(CHELSEA)
    for photo in (stored, tmp_path / "a.png", Image.open(tmp_path / "a.png")):
        images, boxes = Preprocess(32, crop=0.5)(photo)
        assert torch.equal(images, expected.images) and torch.equal(boxes, expected.boxes)


COMPOSED = {
    "v1": v1.Compose([v1.Resize(70), v1.CenterCrop(64), v1.ToTensor(), v1.Normalize(MEAN, STD)]),
    "v2": v2.Compose(
        [v2.ToImage(), v2.Resize(70), v2.CenterCrop(64), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    ),
    "after ToTensor": v1.Compose([v1.ToTensor(), v1.Resize((50, 60)), v1.Normalize(MEAN, STD)]),
    "aliased": v1.Compose([v1.ToTensor(), v1.Resize((50, 60), antialias=False)]),
    "nearest": v2.Compose([v2.ToImage(), v2.Resize((50, 60), NEAREST), v2.ToDtype(torch.float32, scale=True)]),
    "bicubic": v2.Compose([v2.Resize((50, 60), BICUBIC), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]),
    "padded": v2.Compose([v2.Pad((1, 2, 3, 4), fill=(9, 8, 7)), v2.Resize(None, max_size=48), v1.ToTensor()]),
    "longest": v1.Compose([v1.Resize(40, max_size=45), v1.ToTensor()]),
    "padding crop": v1.Compose([v1.Resize(40), v1.CenterCrop((64, 70)), v1.ToTensor(), v1.Normalize(MEAN, STD)]),
    "crop at last": v1.Compose([v1.Resize(40), v1.ToTensor(), v1.Normalize(MEAN, STD), v1.CenterCrop((64, 70))]),
    "crop first": v1.Compose([v1.CenterCrop(200), v1.Resize(32), v1.ToTensor()]),
    "gray": v1.Compose([v1.Grayscale(), v1.Resize((28, 28)), v1.ToTensor(), v1.Normalize((0.1307,), (0.3081,))]),
    "three grays": v1.Compose([v1.Resize((28, 28)), v1.Grayscale(3), v1.ToTensor()]),
    "levels": v2.Compose([v2.Resize(33), v2.PILToTensor(), v2.ToDtype(torch.float32), v2.Normalize([99.0], [50.0])]),
    "modules": nn.Sequential(v2.ToImage(), v2.Resize((50, 40)), v2.ToDtype(torch.float32, scale=True)),
    "nested": v1.Compose([v1.Compose([v1.Resize(33)]), v1.ToTensor()]),
    "timm border": timm.data.create_transform((3, 48, 64), crop_mode="border", crop_pct=0.9),
    "timm frame": timm.data.create_transform((3, 48, 48), crop_mode="border", crop_pct=1.2),
    "timm oblong": timm.data.create_transform((3, 48, 64), crop_pct=0.9),
}


@pytest.mark.parametrize("photo", ["wide", "tall", "panorama"])
@pytest.mark.parametrize("name", COMPOSED)
def test_composed_transforms_are_followed(name, photo):
    preprocess = Preprocess.of(COMPOSED[name])
    expected = COMPOSED[name](PHOTOS[photo])
    # Resizing floats and resizing levels differ in rounding.
    torch.testing.assert_close(preprocess(PHOTOS[photo]).images[0], expected.float(), rtol=0, atol=0.02)


HUGGING_FACE = {
    "vit": lambda hf: hf.ViTImageProcessor(size={"height": 48, "width": 64}),
    "convnext": lambda hf: hf.ConvNextImageProcessor(size={"shortest_edge": 48}),
    "large convnext": lambda hf: hf.ConvNextImageProcessor(size={"shortest_edge": 384}),
    "clip": lambda hf: hf.CLIPImageProcessor(size={"shortest_edge": 49}, crop_size={"height": 44, "width": 40}),
    "detr": lambda hf: hf.DetrImageProcessor(size={"shortest_edge": 60, "longest_edge": 80}),
    "padded detr": lambda hf: hf.DetrImageProcessor(
        size={"shortest_edge": 60, "longest_edge": 80}, pad_size={"height": 90, "width": 96}
    ),
    "beit": lambda hf: hf.BeitImageProcessor(size={"height": 48, "width": 48}),
    "deit": lambda hf: hf.DeiTImageProcessor(size={"height": 56, "width": 56}, crop_size={"height": 48, "width": 48}),
    "mobilevit": lambda hf: hf.MobileViTImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 48, "width": 48}
    ),
    "levit": lambda hf: hf.LevitImageProcessor(size={"shortest_edge": 49}, crop_size={"height": 49, "width": 49}),
    "efficientnet": lambda hf: hf.EfficientNetImageProcessor(size={"height": 48, "width": 48}),
    "unscaled": lambda hf: hf.ViTImageProcessor(size={"height": 48, "width": 64}, do_normalize=False),
}


@pytest.mark.parametrize("kind", ["", "Pil"])
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_processors_of_transformers_are_followed(name, kind):
    transformers = pytest.importorskip("transformers")
    processor = HUGGING_FACE[name](transformers)
    if kind:
        variant = getattr(transformers, type(processor).__name__ + kind, None)
        if variant is None:
            pytest.skip("this release of transformers has one kind of processors")
        processor = variant(**{k: v for k, v in processor.to_dict().items() if k != "image_processor_type"})
    preprocess = Preprocess.of(processor)
    for photo in (CHELSEA, PHOTOS["tall"]):
        expected = torch.as_tensor(numpy.asarray(processor(photo, return_tensors="pt")["pixel_values"][0]))
        # Pillow and torch round differently.
        difference = (preprocess(photo).images[0] - expected).abs() * torch.tensor(preprocess.std)[:, None, None]
        assert difference.max() < 3 / 255


def test_the_photos_of_a_detector_are_padded_to_the_largest_and_their_boxes_say_so():
    transformers = pytest.importorskip("transformers")
    processor = transformers.DetrImageProcessor(size={"shortest_edge": 60, "longest_edge": 80})
    photos = [CHELSEA, PHOTOS["tall"]]
    images, boxes = Preprocess.of(processor)(photos)
    expected = processor(photos, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(images, expected, rtol=0, atol=0.06)
    assert images.shape == (2, 3, 80, 80)
    assert boxes[0].tolist() == pytest.approx([0, 0, 451, 300 * 80 / 53])
    assert boxes[1].tolist() == pytest.approx([0, 0, 300 * 80 / 53, 451])


def test_pipelines_processors_and_models_that_hold_a_preprocessing_are_taken():
    class Holder:
        image_processor = pytest.importorskip("transformers").ViTImageProcessor()

    assert Preprocess.of(Holder()).size == (224, 224)
    assert Preprocess.of(timm.create_model("test_vit")) == Preprocess.of(timm.get_pretrained_cfg("test_vit"))
    preprocess = Preprocess(32)
    assert Preprocess.of(preprocess) is preprocess and Preprocess.of({"size": 32}) == preprocess
    assert Preprocess.of(ResNet18_Weights) == Preprocess.of(ResNet18_Weights.DEFAULT)


def inverted(image):
    return 1 - image


@pytest.mark.parametrize(
    ("transform", "error", "parts"),
    [
        (v1.RandomResizedCrop(32), ValueError, ["RandomResizedCrop", "is random", "evaluation"]),
        (v1.RandomHorizontalFlip(), ValueError, ["RandomHorizontalFlip", "is random"]),
        (v1.Lambda(inverted), ValueError, ["Lambda", "unknown", "Preprocess(size"]),
        (v1.TenCrop(32), ValueError, ["TenCrop", "unknown"]),
        (inverted, ValueError, ["inverted", "unknown"]),
        (v1.Pad(4, padding_mode="reflect"), ValueError, ["Pad", "reflect", "own pixels"]),
        (v1.Resize(30), ValueError, ["Resize(size=30", "Image", "ToTensor()"]),
        (nn.Linear(2, 2), TypeError, ["Linear", "torchvision", "timm", "transformers"]),
        (3, TypeError, ["int"]),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(transform, error, parts):
    alone = error is TypeError or isinstance(transform, v1.Resize)
    composed = transform if alone else v1.Compose([v1.Resize(40), transform, v1.ToTensor()])
    with pytest.raises(error) as refusal:
        Preprocess.of(composed)
    assert_says(refusal, error, parts)


def test_a_processor_that_does_something_else_than_its_settings_say_is_refused():
    transformers = pytest.importorskip("transformers")

    class Mirrored(transformers.ViTImageProcessor):
        def resize(self, image, *args, **kwargs):
            return super().resize(image, *args, **kwargs).flip(-1)

    with pytest.raises(
        ValueError, match=r"Mirrored makes other pixels of a test photo than its settings say, by up to"
    ):
        Preprocess.of(Mirrored())
    with pytest.raises(ValueError, match=r"TextNetImageProcessor makes an input of shape .*, where its settings say"):
        Preprocess.of(transformers.TextNetImageProcessor())


@pytest.mark.parametrize("shift", [(1, 0), (0, 1)])
def test_a_shift_by_one_pixel_of_the_input_is_noticed(shift):
    transform = v1.Compose([v1.Resize((64, 64)), v1.ToTensor()])
    preprocess = Preprocess.of(transform)
    with pytest.raises(ValueError, match="other pixels"):
        verify(preprocess, lambda photo: transform(photo).roll(shift, (1, 2)), "shifted")


@pytest.mark.parametrize(
    ("photo", "error", "parts"),
    [
        (numpy.zeros((2, 4, 4, 3, 1)), ValueError, ["array", "(2, 4, 4, 3, 1)", "(H,W,3)"]),
        (numpy.zeros((5, 6, 7)), ValueError, ["array", "(5, 6, 7)"]),
        (torch.zeros(5, 6, 7), ValueError, ["tensor", "(5, 6, 7)", "(3,H,W)"]),
        (torch.full((3, 4, 4), 200.0), ValueError, ["200", "[0,1]", "uint8"]),
        (torch.randn(3, 9, 9), ValueError, ["[0,1]", "normalised"]),
        (torch.zeros(3, 4, 4, dtype=torch.int64), TypeError, ["int64", "uint8"]),
        (torch.zeros(3, 0, 4), ValueError, ["(3, 0, 4)", "without a pixel"]),
        ([], ValueError, ["empty"]),
        (3, TypeError, ["int", "path"]),
        ("nowhere.jpg", exceptions.UnreadablePhotoError, ["nowhere.jpg", "no such file"]),
    ],
)
def test_what_is_no_photo_is_refused(photo, error, parts):
    with pytest.raises(error) as refusal:
        Preprocess(8)(photo)
    assert_says(refusal, error, parts)


@pytest.mark.parametrize(
    ("choice", "parts"),
    [
        ({"size": (0, 224)}, ["size=(0, 224)", "at least 1"]),
        ({"size": 2.5}, ["size=2.5", "(height, width)"]),
        ({"std": (0.2, 0, 0.2)}, ["std=(0.2, 0, 0.2)", "above 0"]),
        ({"mean": (0.5, 0.5)}, ["mean=(0.5, 0.5)", "three numbers"]),
        ({"crop": 0}, ["crop=0", "(0,1]"]),
        ({"crop": 1.5}, ["crop=1.5", "(0,1]"]),
        ({"crop": "full"}, ["crop='full'", "(0,1]"]),
        ({"fit": "squash"}, ["fit='squash'", "stretch"]),
        ({"fit": "letterbox", "crop": 0.5}, ["crop=0.5", "letterbox"]),
        ({"place": "top"}, ["place='top'", "corner"]),
        ({"interpolation": "linear"}, ["interpolation='linear'", "bilinear, bicubic"]),
    ],
)
def test_what_cannot_be_is_refused(choice, parts):
    with pytest.raises(ValueError) as refusal:
        Preprocess(**{"size": (8, 8), "mean": MEAN, "std": STD, **choice})
    assert_says(refusal, ValueError, parts)


@pytest.mark.parametrize(
    ("preprocess", "fit"),
    [
        (Preprocess(64, crop=0.875), {"crop": 0.875}),
        (Preprocess((64, 128), crop=0.875), {"crop": 0.875}),
        (Preprocess(64, fit="stretch", crop=0.5), {"fit": "stretch", "crop": 0.5}),
        (Preprocess(64, fit="stretch", interpolation="bicubic"), {"fit": "stretch", "interpolation": "bicubic"}),
        (Preprocess(64, fit="letterbox", fill=114), {"fit": "letterbox", "fill": 114}),
    ],
)
def test_numbers_can_be_changed_and_the_others_stay(preprocess, fit):
    assert preprocess.changed(size=(96, 96)) == Preprocess(96, **fit)
    assert preprocess.changed() == preprocess
    kept = {"interpolation": fit.get("interpolation", "bilinear")}
    assert preprocess.changed(size=(96, 96), crop=0.25) == Preprocess(96, crop=0.25, **kept)
    assert preprocess.changed(size=(96, 96), crop=None) == Preprocess(96, fit="stretch", **kept)
    assert preprocess.changed(mean=(0, 0, 0)).mean == (0, 0, 0)


def test_its_words_name_the_steps():
    assert "shortest" in repr(of("ResNet18_Weights.IMAGENET1K_V1")) and "0.485" in repr(Preprocess(8))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    "geometry",
    [
        lambda kernel: [v2.Resize(32, kernel), v2.CenterCrop(32)],
        lambda kernel: [v2.Resize(32, kernel), v2.CenterCrop((48, 40))],  # pads what is too low
        lambda kernel: [v2.Resize(8, kernel), v2.Pad(4, fill=90), v2.Resize(32, kernel), v2.CenterCrop(32)],
    ],
)
def test_a_strip_is_resized_only_where_it_is_seen(monkeypatch, geometry, interpolation):
    strip = Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (6, 700, 3), dtype=numpy.uint8))
    transforms = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    preprocess = Preprocess.of(v2.Compose([*geometry(InterpolationMode(interpolation)), *transforms]))
    whole, boxes = preprocess(strip)
    monkeypatch.setattr(steps, "MAX_RESIZED_PIXELS", 1)
    asked = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda image, size, *rest: asked.append(size) or resize(image, size, *rest)
    )
    part, boxes_of_part = preprocess(strip)
    assert max(asked[-1]) <= 48
    assert (part - whole).abs().max() < 0.05 and torch.equal(boxes, boxes_of_part)
