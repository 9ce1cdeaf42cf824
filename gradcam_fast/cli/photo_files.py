"""Photo files: found in folders and by patterns, and read as upright RGB images."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import torch

try:
    from PIL import Image, ImageOps, UnidentifiedImageError
except ImportError as error:
    raise ImportError("photos are read with Pillow, which is not installed; run pip install pillow") from error
try:
    import simplejpeg
except ImportError:  # Pillow reads the same pixels in a third more time
    simplejpeg = None

from ..exceptions import UnreadablePhotoError
from ..photos import as_rgb
from ..visual.figures import is_own

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PhotoFile", "UnreadablePhotoError", "find_photos", "pixels", "read_photo"]

PHOTO_SUFFIXES = frozenset(
    ".avif .bmp .dib .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp".split()
)
_ORIENTATION, _UPRIGHT = 0x0112, 1


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
            if not path.is_dir():
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


def read_photo(path: str | os.PathLike[str]) -> Image.Image:
    """Read a photo of any common kind as upright 8-bit RGB.

    The EXIF orientation is applied, transparency is laid over white, 16-bit grayscale is scaled to 8 bits, and of an
    animation the first frame is taken.

    Raises:
        UnreadablePhotoError: in one sentence, which file and why.
    """
    try:
        data = Path(path).read_bytes()
        with Image.open(BytesIO(data)) as file:
            return _plain_jpeg(file, data) or as_rgb(ImageOps.exif_transpose(file))
    except FileNotFoundError:
        reason = "no such file"
    except UnidentifiedImageError:
        reason = "not a photo in a format that Pillow reads"
    except Exception as error:  # decoders of damaged files raise everything from SyntaxError to struct.error
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    raise UnreadablePhotoError(f"{path}: {reason}")


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
