"""Pictures and arrays as the bytes of files that carry a note: of which photo they are, and how they were made."""

from __future__ import annotations

import functools
import json
import os
import stat
import zlib
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

try:
    import simplejpeg
except ImportError:  # Pillow writes the same pixels in a third more time
    simplejpeg = None

from ..visual.figures.figure_files import MARK, SOFTWARE_TAG

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["encode", "photo_of", "read_note", "with_note"]

_SOI, _APP0, _APP1, _COMMENT = b"\xff\xd8", b"\xff\xe0", b"\xff\xe1", b"\xff\xfe"
_PNG_HEADER = 8 + 25  # signature and IHDR, which is always first
_NPY, _NPY_MARK = b"\x93NUMPY", b"gradcam_fast"


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
