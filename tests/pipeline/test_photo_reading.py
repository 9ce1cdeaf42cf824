"""Every kind of photo becomes upright RGB, from a file as from its bytes, and unreadable photos are named."""

from io import BytesIO
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from gradcam_fast import photo_decoding
from gradcam_fast.exceptions import UnreadablePhotoError
from gradcam_fast.pipeline.photo_reading import load_photo, pixels, read_photo
from gradcam_fast.preprocess import Preprocess

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def colours(photo):
    assert photo.mode == "RGB"
    return [[photo.getpixel((x, y)) for x in range(photo.width)] for y in range(photo.height)]


@pytest.fixture
def saved(tmp_path):
    def save(photo, name="photo.png", **options):
        photo.save(tmp_path / name, **options)
        return tmp_path / name

    return save


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, [[RED, GREEN, BLUE]]),
        (2, [[BLUE, GREEN, RED]]),
        (3, [[BLUE, GREEN, RED]]),
        (6, [[RED], [GREEN], [BLUE]]),
        (8, [[BLUE], [GREEN], [RED]]),
    ],
)
def test_the_exif_orientation_is_applied(saved, orientation, upright):
    photo = Image.new("RGB", (3, 1))
    photo.putdata([RED, GREEN, BLUE])
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert colours(read_photo(saved(photo, exif=exif))) == upright


def test_gray_becomes_three_equal_channels(saved):
    assert colours(read_photo(saved(Image.new("L", (1, 1), 77)))) == [[(77, 77, 77)]]
    assert colours(read_photo(saved(Image.new("1", (1, 1), 1)))) == [[WHITE]]


@pytest.mark.parametrize("name", ["photo.png", "photo.tif"])
def test_sixteen_bits_are_scaled_and_not_clipped(saved, name):
    levels = numpy.array([[0, 257, 0x8080, 65535]], dtype=numpy.uint16)
    assert pixels(read_photo(saved(Image.fromarray(levels), name)))[0].tolist() == [[0, 1, 128, 255]]


def test_sixteen_bit_levels_in_32_bit_pixels_are_scaled_too(saved):
    levels = numpy.array([[0, 0x8080, 65535]], dtype=numpy.int32)
    assert pixels(read_photo(saved(Image.fromarray(levels), "photo.tif")))[0].tolist() == [[0, 128, 255]]


@pytest.mark.parametrize(("mode", "colour"), [("RGBA", (255, 0, 0, 128)), ("LA", (0, 128))])
def test_transparency_is_laid_over_white(saved, mode, colour):
    colour_read = colours(read_photo(saved(Image.new(mode, (1, 1), colour))))[0][0]
    assert colour_read == ((255, 127, 127) if mode == "RGBA" else (127, 127, 127))


def test_a_transparent_palette_colour_is_white(saved):
    photo = Image.new("P", (2, 1))
    photo.putpalette([*RED, *BLUE])
    photo.putdata([0, 1])
    assert colours(read_photo(saved(photo, transparency=0))) == [[WHITE, BLUE]]


def test_cmyk_is_read_as_the_colour_that_is_printed(saved):
    photo = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red, green, blue = colours(read_photo(saved(photo, "photo.jpg", quality=100)))[4][4]
    assert red > 250 and green < 5 and blue < 5


def test_the_first_frame_of_an_animation_counts(saved):
    frames = [Image.new("RGB", (2, 2), colour) for colour in (RED, BLUE)]
    path = saved(frames[0], "photo.gif", save_all=True, append_images=frames[1:])
    assert colours(read_photo(path))[0][0] == RED


def test_the_folder_and_the_missing_and_the_damaged_are_named(tmp_path, saved):
    text = tmp_path / "text.jpg"
    text.write_text("no photo")
    empty = tmp_path / "empty.png"
    empty.touch()
    cut = saved(Image.effect_noise((64, 64), 50), "cut.jpg")
    cut.write_bytes(cut.read_bytes()[:900])
    broken = saved(Image.effect_noise((64, 64), 50), "broken.png")
    broken.write_bytes(broken.read_bytes()[:60] + b"\0" * 500)
    unscaled = saved(Image.new("F", (2, 2), 0.5), "unscaled.tif")
    reasons = {
        tmp_path / "missing.jpg": "no such file",
        text: "not a photo in a format that Pillow reads",
        empty: "not a photo in a format that Pillow reads",
        tmp_path: "Is a directory",
        cut: "truncated",
        broken: "broken",
        unscaled: "floating-point pixel values of unknown scale",
    }
    for path, reason in reasons.items():
        with pytest.raises(UnreadablePhotoError) as caught:
            read_photo(path)
        assert str(caught.value).startswith(f"{path}: ") and reason in str(caught.value)


def test_pixels_keep_place_and_channel():
    photo = Image.new("RGB", (3, 2))
    photo.putpixel((2, 0), (10, 20, 30))
    read = pixels(photo)
    assert read.dtype == torch.uint8 and read.shape == (3, 2, 3)
    assert read[:, 0, 2].tolist() == [10, 20, 30] and read.sum() == 60


@pytest.fixture
def noise():
    channels = [Image.effect_noise((67, 45), sigma) for sigma in (40, 60, 80)]
    return Image.merge("RGB", channels)


@pytest.mark.parametrize("options", [{}, {"quality": 30}, {"subsampling": 0}, {"progressive": True}])
def test_a_jpeg_has_the_pixels_that_pillow_reads(saved, noise, options, monkeypatch):
    pytest.importorskip("simplejpeg")
    path = saved(noise, "photo.jpg", **options)
    read = pixels(read_photo(path))
    monkeypatch.setattr(photo_decoding, "simplejpeg", None)
    assert read.float().std() > 20
    assert torch.equal(read, pixels(read_photo(path)))


@pytest.mark.parametrize(("mode", "orientation"), [("RGB", 1), ("RGB", 6), ("L", 1), ("CMYK", 1)])
def test_the_fast_decoder_is_given_upright_colour_only(saved, noise, monkeypatch, mode, orientation):
    simplejpeg = pytest.importorskip("simplejpeg")
    decoded = []

    def decode_jpeg(data):
        decoded.append(data)
        return simplejpeg.decode_jpeg(data)

    monkeypatch.setattr(photo_decoding, "simplejpeg", type("Watched", (), {"decode_jpeg": staticmethod(decode_jpeg)}))
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = read_photo(saved(noise.convert(mode), "photo.jpg", exif=exif))
    assert read.mode == "RGB" and read.size == ((45, 67) if orientation == 6 else (67, 45))
    assert len(decoded) == (mode == "RGB" and orientation == 1)


def test_the_bytes_of_a_file_are_read_as_the_file_is(saved):
    photo = Image.effect_noise((9, 5), 80).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("photo.png", "photo.jpg", "photo.webp", "photo.tif"):
        path = saved(photo, name, exif=exif)
        assert torch.equal(pixels(read_photo(path.read_bytes())), pixels(read_photo(path))), name


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a photo in a format that Pillow reads"),
        (b"no photo", "not a photo in a format that Pillow reads"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a photo in a format that Pillow reads"),
        (b"\x89PNG\r\n\x1a\n", "not a photo in a format that Pillow reads"),
        (b"GIF89a", "not a photo in a format that Pillow reads"),
    ],
)
def test_bytes_that_are_no_photo_are_named_and_no_object_is(data, reason):
    with pytest.raises(UnreadablePhotoError) as caught:
        read_photo(data, name="instances[3]")
    assert str(caught.value) == f"instances[3]: {reason}"


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "TGA", "JPEG2000"])
def test_no_message_about_damaged_bytes_shows_the_address_of_an_object(format):
    file = BytesIO()
    Image.effect_noise((32, 32), 50).convert("RGB").save(file, format)
    whole = file.getvalue()
    refused = 0
    for damaged in (whole[: len(whole) // 2], whole[:40], whole[:30] + bytes(30) + whole[60:], whole[:64] * 2):
        try:
            read_photo(damaged)
        except UnreadablePhotoError as error:
            refused += 1
            assert str(error).startswith("photo: ") and "0x" not in str(error) and "BytesIO" not in str(error)
    assert refused


def test_a_message_of_a_decoder_that_names_its_object_is_told_without_it(monkeypatch):
    def fail(file, **_):
        raise OSError(f"cannot load {file!r}")

    monkeypatch.setattr(photo_decoding.Image, "open", fail)
    with pytest.raises(UnreadablePhotoError, match=r"^photo: cannot load the file$"):
        read_photo(b"anything")


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    file = BytesIO()
    Image.new("L", (3000, 2000)).save(file, "PNG")
    monkeypatch.setattr(photo_decoding, "as_rgb", lambda _: pytest.fail("was decoded"))
    with pytest.raises(UnreadablePhotoError, match=r"^photo: has 3000 x 2000 pixels, more than 1,000,000; make it"):
        read_photo(file.getvalue(), max_pixels=1_000_000)


def test_a_loaded_photo_has_its_box_its_input_and_its_pixels_if_they_are_shown():
    photo = Image.new("RGB", (40, 20), "red")
    preprocess = Preprocess((10, 10), mean=(0, 0, 0), std=(1, 1, 1))
    loaded = load_photo(photo, preprocess, path=Path("a.png"), name="a")
    assert (loaded.size, loaded.box, loaded.pixels) == ((40, 20), (10, 0, 30, 20), None)
    assert loaded.input.shape == (1, 3, 10, 10) and loaded.input[0, 0].min() == 1 and loaded.input[0, 1:].max() == 0
    shown = load_photo(photo, preprocess, path=Path("a.png"), name="a", longest=10).pixels
    assert shown.shape == (10, 10, 3) and shown[0, 0].tolist() == list(RED)
