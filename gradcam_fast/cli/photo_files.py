"""Photo files: found in folders and by patterns, and read as upright RGB images."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import torch

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
    import simplejpeg
except ImportError:  # Pillow reads the same pixels in a third more time
    simplejpeg = None

try:
    from PIL import AvifImagePlugin  # noqa: F401
except ImportError:  # before Pillow 11.3
    pass

from ..visual.figures import is_own
from .results import MAX_PIXELS, PhotoError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PhotoFile", "UnreadablePhotoError", "find_photos", "own_pixel_limit", "pixels", "read_photo"]

PHOTO_SUFFIXES = frozenset(
    ".avif .bmp .dib .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp".split()
)
_FORMATS = [name for name in "AVIF BMP DIB GIF JPEG JPEG2000 MPO PNG PPM TGA TIFF WEBP".split() if name in Image.OPEN]
_ORIENTATION, _UPRIGHT = 0x0112, 1
_MAX_FILE_BYTES_PER_PIXEL = 8
# 16-bit levels to 8 bits; Pillow's own conversion clips at 255 instead, which turns almost every 16-bit photo white.
_TO_8_BITS = ((numpy.arange(65536) + 128) // 257).astype(numpy.uint8)


@dataclass(frozen=True)
class PhotoFile:
    """A photo's file, and its subfolder (or ``.``) in the folder that was searched."""

    path: Path
    subfolder: Path = Path()


def find_photos(
    paths: Sequence[str | os.PathLike[str]], out: Path, report_empty: Callable[[str], None]
) -> list[PhotoFile]:
    """The photos that ``paths`` name, in the order given; a folder gives all photos in it and below it, sorted.

    In folders, only files with the usual suffixes of photos count (`PHOTO_SUFFIXES`). Hidden files, pictures that this
    package wrote and everything in ``out`` are left out. A file named directly, or by a pattern, is always taken.

    Args:
        report_empty: called with a message for each folder without photos.
    """
    photos: list[PhotoFile] = []
    for path_or_pattern in paths:
        name = os.fspath(path_or_pattern)
        matches = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) and not os.path.lexists(name) else []
        for path in map(Path, matches or [name]):
            if not os.path.isdir(path):
                photos.append(PhotoFile(path))
                continue
            inside = [PhotoFile(file, file.parent.relative_to(path)) for file in _photos_below(path, out.resolve())]
            photos += inside
            if not inside:
                report_empty(f"{path}: no photos in this folder")
    return photos


def _photos_below(folder: Path, out: Path) -> Iterator[Path]:
    # If ``out`` is the folder of the photos, only the pictures in it are left out, not the whole folder.
    out_has_photos = folder.resolve() == out
    for root, subfolders, files in os.walk(folder):
        subfolders[:] = sorted(
            name
            for name in subfolders
            if not name.startswith(".") and (out_has_photos or Path(root, name).resolve() != out)
        )
        for name in sorted(files):
            path = Path(root, name)
            if name.startswith(".") or path.suffix.lower() not in PHOTO_SUFFIXES:
                continue
            if "-gradcam" not in name or not is_own(path):
                yield path


class UnreadablePhotoError(PhotoError):
    """A file is missing, damaged, not a photo, too large, or of unknown scale of values."""


def read_photo(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a photo of any common kind as upright 8-bit RGB.

    The EXIF orientation is applied, transparency is laid over white, 16-bit grayscale is scaled to 8 bits, and of an
    animation the first frame is taken.

    Args:
        max_pixels: of larger photos only the header is read, and they are refused. Reading a photo takes at most 20
            bytes of memory a pixel, and those of its file.

    Raises:
        UnreadablePhotoError: in one sentence, which file and why.
    """
    try:
        data = _read_regular(path, _MAX_FILE_BYTES_PER_PIXEL * max_pixels + 2**20)
        with Image.open(BytesIO(data), formats=_FORMATS) as file:
            width, height = file.size
            if width * height > max_pixels:
                raise ValueError(
                    f"has {width} x {height} pixels, more than {max_pixels:,}; make it smaller, or raise --max-pixels"
                )
            if (photo := _plain_jpeg(file, data)) is not None:
                return photo
            ImageOps.exif_transpose(file, in_place=True)
            return _as_rgb(file)
    except FileNotFoundError:
        reason = "no such file"
    except UnidentifiedImageError:
        reason = "not a photo in a format that Pillow reads"
    except Exception as error:  # decoders of damaged files raise everything from SyntaxError to struct.error
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    raise UnreadablePhotoError(f"{path}: {reason}")


@contextmanager
def own_pixel_limit() -> Iterator[None]:
    """Turn Pillow's limit off, for the whole process: ``max_pixels`` of :func:`read_photo` is the limit instead."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _read_regular(path: str | os.PathLike[str], most: int) -> bytes:
    # Opening a pipe would wait for its writer, and a device may never end.
    mode, size = (status := os.stat(path)).st_mode, status.st_size
    if stat.S_ISDIR(mode):
        raise ValueError("Is a directory")
    if not stat.S_ISREG(mode):
        raise ValueError("not a regular file")
    if size > most:
        raise ValueError(f"a file of {size:,} bytes is too large for a photo; make it smaller, or raise --max-pixels")
    return Path(path).read_bytes()


def pixels(photo: Image.Image) -> Tensor:
    """An RGB photo as a (3,H,W) uint8 tensor on the CPU."""
    return torch.from_numpy(numpy.array(photo)).permute(2, 0, 1)


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


def _as_rgb(photo: Image.Image) -> Image.Image:
    if photo.mode == "F":
        raise ValueError("floating-point pixel values of unknown scale; save it with 8 or 16 bits")
    if photo.mode.startswith("I"):
        return _from_16_bits(photo)
    if photo.has_transparency_data:
        if photo.mode != "RGBA":
            photo = photo.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo).convert("RGB")
    return photo.convert("RGB")


def _from_16_bits(photo: Image.Image) -> Image.Image:
    levels = numpy.asarray(photo)
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError("32-bit pixel values of unknown scale; save it with 8 or 16 bits")
    return Image.fromarray(_TO_8_BITS[levels]).convert("RGB")
