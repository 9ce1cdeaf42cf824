"""A map lies on the photo where the network looked, to within one map pixel's rounding, by every preprocessing."""

import numpy
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate
from torchvision import transforms as v1

from gradcam_fast import Preprocess, overlay
from gradcam_fast.visual.placement import boxes_of, covers_whole_photo, place

GRAY = {"mean": (0,) * 3, "std": (1,) * 3}
PREPROCESSINGS = {
    "resize and crop": Preprocess(96, crop=224 / 256, **GRAY),
    "small crop": Preprocess((64, 96), crop=0.6, **GRAY),
    "stretch": Preprocess((64, 96), fit="stretch", **GRAY),
    "squash": Preprocess((96, 64), fit="stretch", crop=0.7, **GRAY),
    "letterbox": Preprocess(96, fit="letterbox", fill=114, **GRAY),
    "letterbox in the corner": Preprocess((96, 128), fit="letterbox", place="corner", **GRAY),
    "composed": Preprocess.of(v1.Compose([v1.Pad((9, 30, 21, 6)), v1.Resize(100), v1.CenterCrop(90), v1.ToTensor()])),
    "crop, then resize": Preprocess.of(v1.Compose([v1.CenterCrop(230), v1.Resize((80, 70)), v1.ToTensor()])),
    "longest": Preprocess.of(v1.Compose([v1.Resize(60, max_size=90), v1.ToTensor()])),
}
SIZES = [(640, 480), (480, 640), (333, 250), (250, 333), (300, 300)]


def framed():
    """timm's border mode."""
    timm = pytest.importorskip("timm")
    config = dict(
        timm.get_pretrained_cfg("resnet18").to_dict(), input_size=(3, 96, 96), crop_mode="border", crop_pct=0.9
    )
    return Preprocess.of(config)


def with_square(size, side=60, off=(17, -23)):
    """A black photo with a white square near its middle, and the square's (left, top, right, bottom)."""
    left, top = (length // 2 - side // 2 + shift for length, shift in zip(size, off, strict=True))
    photo = Image.new("RGB", size)
    square = (left, top, left + side, top + side)
    photo.paste("white", square)
    return photo, square


def hot_edges(shown, brightest):
    """The edges of what is hot in a map on a photo."""
    rows, columns = numpy.nonzero(numpy.asarray(shown > brightest / 2))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def assert_on_square(preprocess, photo, square, size):
    """The input itself is the map: its bright square must lie on the photo's."""
    images, boxes = preprocess(photo)
    maps = images[:, 0] * torch.tensor(preprocess.std[0]) + preprocess.mean[0]
    shown, inside = place(maps[0], size[::-1], tuple(boxes[0].tolist()))
    # One pixel of the map, in pixels of the photo.
    left, top, right, bottom = boxes[0].tolist()
    pixel = max((right - left) / maps.shape[2], (bottom - top) / maps.shape[1])
    edges = hot_edges(torch.where(inside, shown, 0), 1)
    seen = numpy.clip(square, [left, top] * 2, [right, bottom] * 2)  # a crop may cut the square
    assert numpy.abs(edges - seen).max() <= pixel / 2 + 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [*PREPROCESSINGS, "border of timm"])
def test_the_hot_square_lies_on_the_bright_one(name, size):
    preprocess = PREPROCESSINGS.get(name) or framed()
    assert_on_square(preprocess, *with_square(size), size)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_hot_square_lies_on_the_bright_one_of_a_turned_photo(tmp_path, orientation):
    upright, square = with_square((333, 250))
    turns = [None, None, *map(Image.Transpose, (0, 3, 1, 5, 2, 6, 4))]  # what a camera does to an upright photo
    stored = upright if turns[orientation] is None else upright.transpose(turns[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert_on_square(PREPROCESSINGS["resize and crop"], tmp_path / "a.png", square, upright.size)
    heat = torch.zeros(1, 8, 8)
    shown = overlay(tmp_path / "a.png", heat, box="whole", alpha=0.0)[0]
    assert torch.equal(shown, torch.from_numpy(numpy.array(upright)).permute(2, 0, 1))


def test_a_map_of_the_whole_photo_is_resized_as_torch_does():
    maps = torch.rand(3, 7, 9)
    shown, inside = place(maps, (224, 300), (0, 0, 300, 224))
    torch.testing.assert_close(shown, interpolate(maps[None], (224, 300), mode="bilinear")[0])
    assert inside.all()
    assert torch.equal(place(maps, (7, 9), (0, 0, 9, 7))[0], maps)


def test_a_map_beyond_the_photo_is_cut_off():
    maps = torch.rand(1, 8, 8)
    whole = place(maps, (60, 60), (0, 0, 60, 60))[0]
    shown, inside = place(maps, (40, 60), (0, -10, 60, 50))
    torch.testing.assert_close(shown, whole[:, 10:50])
    assert inside.all()


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_the_photo_is_untouched_outside_of_the_box(alpha):
    photo = torch.randint(0, 256, (1, 3, 30, 40), dtype=torch.uint8)
    maps = torch.rand(1, 2, 5, 5)
    shown = overlay(photo, maps, box=(10.2, 4.6, 30.4, 24.5), alpha=alpha)
    outside = torch.ones(30, 40, dtype=torch.bool)
    outside[5:24, 10:30] = False
    assert shown.shape == (1, 2, 3, 30, 40)
    for k in range(2):
        assert torch.equal(shown[0, k][:, outside], photo[0][:, outside])
        assert (shown[0, k] != photo[0]).any(0)[5:24, 10:30].float().mean() > 0.9
    inner = overlay(photo[..., 5:24, 10:30], place(maps[0], (30, 40), (10.2, 4.6, 30.4, 24.5))[0][None, :, 5:24, 10:30])
    if alpha == 0.5:
        assert torch.equal(shown[..., 5:24, 10:30], inner)


def test_photos_of_several_sizes_have_a_map_and_a_box_each():
    preprocess = Preprocess(32, crop=0.8)
    photos = [with_square(size, 30)[0] for size in SIZES]
    images, boxes = preprocess(photos)
    maps = images[:, 0] - images[:, 0].amin((1, 2), keepdim=True)
    maps = maps / maps.amax((1, 2), keepdim=True)
    shown = overlay(photos, maps, box=boxes)
    assert [tuple(picture.shape[1:]) for picture in shown] == [size[::-1] for size in SIZES]
    for picture, photo, its_map, box in zip(shown, photos, maps, boxes, strict=True):
        assert torch.equal(picture, overlay(photo, its_map, box=box)[0])
    batch = torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8)
    different = overlay(batch, maps[:2], box=[(0, 0, 10, 10), (5, 5, 20, 20)])
    assert torch.equal(different[1], overlay(batch[1], maps[1], box=(5, 5, 20, 20))[0])


def test_a_weight_for_each_value_is_laid_where_the_map_is():
    photo = torch.randint(0, 256, (1, 3, 30, 40), dtype=torch.uint8)
    maps = torch.rand(1, 5, 5)
    weight = torch.zeros(1, 5, 5)
    assert torch.equal(overlay(photo, maps, box=(3, 3, 20, 20), alpha=weight), photo)
    full = overlay(photo, maps, box=(3, 3, 20, 20), alpha=torch.full((1, 5, 5), 0.5))
    assert torch.equal(full, overlay(photo, maps, box=(3, 3, 20, 20)))


@pytest.mark.parametrize("as_photo", [numpy.asarray, lambda photo: photo, lambda photo: numpy.asarray(photo) / 255])
def test_arrays_and_images_are_photos_too(as_photo):
    photo, _ = with_square((40, 30), 10, (0, 0))
    tensor = torch.from_numpy(numpy.array(photo)).permute(2, 0, 1)
    maps = torch.rand(30, 40)
    assert torch.equal(overlay(as_photo(photo), maps), overlay(tensor, maps))


def test_other_pixels_without_a_box_are_refused_with_the_way_out():
    photo, _ = with_square((64, 48))
    for images in (photo, numpy.asarray(photo), torch.zeros(3, 48, 64)):
        with pytest.raises(ValueError, match=r"other pixels .* box=.*Preprocess.*'whole'"):
            overlay(images, torch.rand(32, 32))
    assert overlay(photo, torch.rand(32, 32), box="whole").shape == (1, 3, 48, 64)


@pytest.mark.parametrize(
    ("maps", "photo", "fits"),
    [
        ((7, 7), (224, 224), True),
        ((8, 12), (256, 384), True),
        ((7, 10), (200, 310), True),  # 6.25 and 9.7 rounded up
        ((224, 224), (225, 224), True),
        ((1, 1), (1000, 50), True),
        ((7, 7), (300, 451), False),
        ((224, 224), (480, 640), False),
        ((14, 14), (1000, 50), False),
    ],
)
def test_the_proportions_tell_which_maps_cannot_cover_the_whole_photo(maps, photo, fits):
    assert covers_whole_photo(maps, photo) == fits


def test_boxes_come_as_tensors_lists_or_a_word():
    sizes = [(10, 20), (30, 40)]
    assert boxes_of("whole", sizes) == [(0, 0, 20, 10), (0, 0, 40, 30)]
    rows = [[0, 1, 2, 3], [4, 5, 6, 7]]
    for box in (rows, torch.tensor(rows), numpy.array(rows), [torch.tensor(row) for row in rows]):
        assert boxes_of(box, sizes) == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert boxes_of((0, 1, 2, 3), sizes) == [(0, 1, 2, 3)] * 2
    assert boxes_of(["whole", (0, 1, 2, 3)], sizes) == [(0, 0, 20, 10), (0, 1, 2, 3)]
