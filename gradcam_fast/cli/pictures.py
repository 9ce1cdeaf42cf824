"""Pictures drawn and encoded on the CPU, for one photo at a time: resized heatmaps, overlays, JPEG and PNG bytes.

The overlays equal those of :func:`gradcam_fast.overlay` to within one level, in a tenth of the time, because OpenCV
works on 8-bit integers instead of floats.
"""

from __future__ import annotations

import functools
import json
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy
import torch

try:
    from PIL import Image
except ImportError as error:
    raise ImportError("pictures are written with Pillow, which is not installed; run pip install pillow") from error
try:
    import simplejpeg
except ImportError:  # Pillow writes the same pixels in a third more time
    simplejpeg = None

from ..visual.colormaps import colormap_table
from ..visual.figures.figure_files import MARK, SOFTWARE_TAG

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "blend", "encode", "opencv_on_one_thread", "photo_of", "read_note", "resize_heatmap", "shown_part", "shrink",
    "with_note",
]  # fmt: skip

_SOI, _APP0, _APP1, _COMMENT = b"\xff\xd8", b"\xff\xe0", b"\xff\xe1", b"\xff\xfe"
_PNG_HEADER = 8 + 25  # signature and IHDR, which is always first
_NPY, _NPY_MARK = b"\x93NUMPY", b"gradcam_fast"


def resize_heatmap(heatmap: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """A heatmap (h,w) resized to ``size`` (height, width), float32, scaled to [0,1]; zeros if it is flat.

    Given the map at the layer's own resolution, this is the heatmap that explaining with ``size=size`` returns.

    Example:
        >>> import numpy
        >>> resize_heatmap(numpy.array([[1, 3]], dtype=numpy.float32), (1, 4)).tolist()
        [[0.0, 0.25, 0.75, 1.0]]
    """
    full = cv2.resize(heatmap, size[::-1], interpolation=cv2.INTER_LINEAR)
    low, high, _, _ = cv2.minMaxLoc(full)
    if not high > low:
        return numpy.zeros(size, numpy.float32)
    return (full - numpy.float32(low)) * numpy.float32(1 / (high - low))


def blend(photo: NDArray[Any], heatmap: NDArray[Any], *, colormap: str = "jet", alpha: float = 0.5) -> NDArray[Any]:
    """A heatmap (H,W) in [0,1] laid over a photo (H,W,3) uint8 RGB, as (H,W,3) uint8 RGB.

    Example:
        >>> import numpy
        >>> blend(numpy.full((1, 2, 3), 128, numpy.uint8), numpy.array([[0, 1]], dtype=numpy.float32)).tolist()
        [[[64, 64, 128], [128, 64, 64]]]
    """
    table = colormap_table(colormap, torch.device("cpu")).numpy().reshape(256, 1, 3)
    # Levels are rounded down, as in gradcam_fast.visual.colormaps.colorize.
    levels = cv2.convertScaleAbs(heatmap, alpha=255, beta=-0.499)
    return cv2.addWeighted(photo, 1 - alpha, cv2.applyColorMap(levels, table), alpha, 0)


def shrink(photo: Image.Image, longest: int) -> Image.Image:
    """The photo, made smaller in proportion if a side is longer than ``longest`` pixels."""
    scale = longest / max(photo.size)
    if scale >= 1:
        return photo
    width, height = (max(1, round(side * scale)) for side in photo.size)
    return photo.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)


def shown_part(photo: Image.Image, box: tuple[int, int, int, int], longest: int) -> Image.Image:
    """The part of a photo in ``box``, shrunk as `shrink` does it; black where the box reaches beyond the photo."""
    left, top, right, bottom = box
    inside = max(left, 0), max(top, 0), min(right, photo.width), min(bottom, photo.height)
    if inside == box:
        return shrink(photo.crop(box), longest)
    # The whole box of a strip that was padded to a square may be too large for the memory.
    scale = min(1, longest / max(right - left, bottom - top))
    edges = [round((at - start) * scale) for at, start in zip(inside, (left, top, left, top), strict=True)]
    width, height = (max(1, edges[end] - edges[end - 2]) for end in (2, 3))
    shown = photo.crop(inside).resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    canvas = Image.new(photo.mode, tuple(max(1, round(side * scale)) for side in (right - left, bottom - top)))  # type: ignore[arg-type]
    canvas.paste(shown, (edges[0], edges[1]))
    return canvas


@contextmanager
def opencv_on_one_thread() -> Iterator[None]:
    """Keep OpenCV from starting threads, for callers whose own threads draw one photo each."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def encode(pixels: NDArray[Any], suffix: str, *, quality: int, note: str) -> bytes:
    """An RGB picture (H,W,3) uint8 as the bytes of a ``.jpg`` file or, at compression level 1, of a ``.png`` file.

    The bytes are marked as a picture of this package, and have ``note`` as their comment.
    """
    if suffix == ".jpg" and simplejpeg is not None:
        jpeg = simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="420")
        return with_note(_insert(jpeg, _after_jfif(jpeg), _segment(_APP1, _exif())), note)
    file = BytesIO()
    picture = Image.fromarray(pixels)
    if suffix == ".jpg":
        picture.save(file, "JPEG", quality=quality, exif=_exif())
    else:
        picture.save(file, "PNG", compress_level=1, exif=_exif())
    return with_note(file.getvalue(), note)


def with_note(data: bytes, note: str) -> bytes:
    """The bytes of a JPEG or PNG file with ``note``, in ASCII, as its comment; of a NPY file, behind the array.

    Readers of NPY files stop at the end of the array.
    """
    text = note.encode("ascii")
    if data.startswith(_NPY):
        return data + text + len(text).to_bytes(8, "little") + _NPY_MARK
    if data.startswith(_SOI):
        return _insert(data, _after_jfif(data), _segment(_COMMENT, text))
    body = b"tEXtComment\0" + text
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return _insert(data, _PNG_HEADER, chunk)


def read_note(path: Path) -> str | None:
    """The note of a file that this package wrote, empty if it has none; None for any other file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its writer
            return None
        if path.suffix == ".npy":
            return _read_npy_note(path)
        with Image.open(path, formats=("JPEG", "PNG")) as picture:
            if picture.getexif().get(SOFTWARE_TAG) != MARK:
                return None
            note = picture.info.get("comment", picture.info.get("Comment", ""))
            return note.decode("ascii", "replace") if isinstance(note, bytes) else str(note)
    except Exception:  # damaged files raise everything from SyntaxError to struct.error
        return None


def _read_npy_note(path: Path) -> str | None:
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        tail = 8 + len(_NPY_MARK)
        file.seek(max(0, end - tail))
        length, mark = file.read(8), file.read()
        begin = end - tail - int.from_bytes(length, "little")
        if mark != _NPY_MARK or begin < 0:
            return None
        file.seek(begin)
        return file.read(end - tail - begin).decode("ascii", "replace")


def photo_of(path: Path) -> str | None:
    """The path of the photo of which this package wrote a file, as it was given; None for any other file."""
    try:
        photo = json.loads(read_note(path) or "{}")["photo"]
    except (ValueError, KeyError, TypeError):
        return None
    return photo if isinstance(photo, str) else None


@functools.cache
def _exif() -> bytes:
    exif = Image.Exif()
    exif[SOFTWARE_TAG] = MARK
    return b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")


def _segment(marker: bytes, content: bytes) -> bytes:
    return marker + (len(content) + 2).to_bytes(2, "big") + content


def _after_jfif(jpeg: bytes) -> int:
    return 4 + int.from_bytes(jpeg[4:6], "big") if jpeg[2:4] == _APP0 else 2


def _insert(data: bytes, at: int, piece: bytes) -> bytes:
    return data[:at] + piece + data[at:]
