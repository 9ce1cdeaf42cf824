"""Photo files, their bytes, and PIL images of any mode, as upright RGB images of 8 bits.

Only regular files of raster formats are read.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy

try:
    # Plugins of raster formats only: the one for EPS starts Ghostscript. Pillow loads all if one is missing.
    from PIL import (  # noqa: F401
        BmpImagePlugin,
        GifImagePlugin,
        Image,
        ImageOps,
        Jpeg2KImagePlugin,
        JpegImagePlugin,
        MpoImagePlugin,
        PngImagePlugin,
        PpmImagePlugin,
        TgaImagePlugin,
        TiffImagePlugin,
        UnidentifiedImageError,
        WebPImagePlugin,
    )
except ImportError as error:
    raise ImportError("photos are read with Pillow, which is not installed; run pip install pillow") from error
try:
    from PIL import AvifImagePlugin  # noqa: F401
except ImportError:  # before Pillow 11.3
    pass
try:
    import simplejpeg
except ImportError:  # Pillow reads the same pixels in a third more time
    simplejpeg = None

from .exceptions import UnreadablePhotoError

__all__ = ["as_rgb", "decode_bytes", "decode_file", "max_file_bytes", "own_pixel_limit"]

_FORMATS = [name for name in "AVIF BMP DIB GIF JPEG JPEG2000 MPO PNG PPM TGA TIFF WEBP".split() if name in Image.OPEN]
_ORIENTATION, _UPRIGHT = 0x0112, 1
_MAX_FILE_BYTES_PER_PIXEL = 8
_OBJECT = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>")
# 16-bit levels to 8 bits; Pillow's own conversion clips at 255, which turns almost every 16-bit photo white.
_TO_8_BITS = ((numpy.arange(65536) + 128) // 257).astype(numpy.uint8)


def decode_file(path: str | os.PathLike[str], max_pixels: int, way_out: str) -> Image.Image:
    """Read a photo of any common kind as upright 8-bit RGB.

    The EXIF orientation is applied, transparency is laid over white, 16-bit grayscale is scaled to 8 bits, and of an
    animation the first frame is taken.

    Args:
        max_pixels: of larger photos only the header is read, and they are refused. Reading a photo takes at most 20
            bytes of memory a pixel, and those of its file.
        way_out: what the message tells to do if a photo is too large, besides making it smaller.

    Raises:
        UnreadablePhotoError: in one sentence, which file and why.
    """
    path = os.fspath(path)
    try:
        data = _read_regular(path, max_file_bytes(max_pixels), way_out)
    except FileNotFoundError:
        reason = "no such file"
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    else:
        return decode_bytes(data, max_pixels, way_out, name=path)
    raise UnreadablePhotoError(f"{path}: {reason}")


def decode_bytes(data: bytes, max_pixels: int, way_out: str, *, name: str = "photo") -> Image.Image:
    """Read the bytes of a photo file, as :func:`decode_file` does.

    Args:
        data: the whole file.
        max_pixels, way_out: as for :func:`decode_file`.
        name: what the message of an error calls the photo.

    Raises:
        UnreadablePhotoError: in one sentence, which photo and why.
    """
    try:
        with Image.open(BytesIO(data), formats=_FORMATS) as file:
            width, height = file.size
            if width * height > max_pixels:
                raise ValueError(
                    f"has {width} x {height} pixels, more than {max_pixels:,}; make it smaller, or {way_out}"
                )
            if (photo := _plain_jpeg(file, data)) is not None:
                return photo
            ImageOps.exif_transpose(file, in_place=True)
            return as_rgb(file)
    except UnidentifiedImageError:
        reason = "not a photo in a format that Pillow reads"
    except Exception as error:  # decoders of damaged files raise everything from SyntaxError to struct.error
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    # Pillow is given the bytes; in its messages the object that holds them would stand with its address.
    raise UnreadablePhotoError(f"{name}: {_OBJECT.sub('the file', reason)}")


def max_file_bytes(max_pixels: int) -> int:
    """The size from which a file is too large for a photo of ``max_pixels`` pixels, in bytes."""
    return _MAX_FILE_BYTES_PER_PIXEL * max_pixels + 2**20


@contextmanager
def own_pixel_limit() -> Iterator[None]:
    """Turn Pillow's limit off, for the whole process: ``max_pixels`` of :func:`decode_file` is the limit instead."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def as_rgb(photo: Image.Image) -> Image.Image:
    """A PIL image of any mode as RGB of 8 bits; transparency is laid over white.

    Raises:
        ValueError: pixel values of unknown scale.
    """
    if photo.mode == "F":
        raise ValueError("floating-point pixel values of unknown scale; save it with 8 or 16 bits")
    if photo.mode.startswith("I"):
        return _from_16_bits(photo)
    if photo.has_transparency_data:
        if photo.mode != "RGBA":
            photo = photo.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo).convert("RGB")
    return photo.convert("RGB")


def _read_regular(path: str, most: int, way_out: str) -> bytes:
    # Opening a pipe would wait for its writer, and a device may never end.
    mode, size = (status := os.stat(path)).st_mode, status.st_size
    if stat.S_ISDIR(mode):
        raise ValueError("Is a directory")
    if not stat.S_ISREG(mode):
        raise ValueError("not a regular file")
    if size > most:
        raise ValueError(f"a file of {size:,} bytes is too large for a photo; make it smaller, or {way_out}")
    return Path(path).read_bytes()


def _plain_jpeg(file: Image.Image, data: bytes) -> Image.Image | None:
    """The photo, if simplejpeg can read it: an intact, upright JPEG in colour, as most photos are; otherwise None."""
    if simplejpeg is None or (file.format, file.mode) != ("JPEG", "RGB"):
        return None
    if file.getexif().get(_ORIENTATION, _UPRIGHT) != _UPRIGHT:
        return None
    try:
        return Image.fromarray(simplejpeg.decode_jpeg(data))
    except ValueError:  # Pillow may still read the file, or its error says what is wrong
        return None


def _from_16_bits(photo: Image.Image) -> Image.Image:
    levels = numpy.asarray(photo)
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError("32-bit pixel values of unknown scale; save it with 8 or 16 bits")
    return Image.fromarray(_TO_8_BITS[levels]).convert("RGB")
