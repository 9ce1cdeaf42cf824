"""Files that are whole or not there, and pictures that say who made them, of what, and how.

Knows nothing of what the pictures show.
"""

from __future__ import annotations

import functools
import os
import zlib
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

try:
    from PIL import Image
except ImportError as error:
    raise ImportError("pictures are written with Pillow, which is not installed; run pip install pillow") from error
try:
    import simplejpeg
except ImportError:  # Pillow writes the same pixels in a third more time
    simplejpeg = None

from ..visual.figures.figure_files import MARK, SOFTWARE

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

__all__ = ["annotated", "encoded", "note_of", "temporary", "write_whole"]

_SOI, _APP0, _APP1, _COMMENT = b"\xff\xd8", b"\xff\xe0", b"\xff\xe1", b"\xff\xfe"
_PNG_HEADER = 8 + 25  # signature and IHDR, which is always first


def temporary(path: Path) -> Path:
    """Where to write what will be ``path``: beside it, hidden, of the same suffix, the same for every attempt."""
    return path.with_name(f".{path.stem}.part{path.suffix}")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that whoever looks, and whenever the process dies, it is whole or not there."""
    part = temporary(path)
    try:
        part.write_bytes(data)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
    os.replace(part, path)


def encoded(pixels: NDArray[Any], suffix: str, *, quality: int, note: str) -> bytes:
    """An RGB picture (H,W,3) uint8 as the bytes of a ``.jpg`` or, at compression level 1, a ``.png`` file."""
    if suffix == ".jpg" and simplejpeg is not None:
        jpeg = simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="420")
        return annotated(_inserted(jpeg, _after_jfif(jpeg), _segment(_APP1, _exif())), note)
    file = BytesIO()
    picture = Image.fromarray(pixels)
    if suffix == ".jpg":
        picture.save(file, "JPEG", quality=quality, exif=_exif())
    else:
        picture.save(file, "PNG", compress_level=1, exif=_exif())
    return annotated(file.getvalue(), note)


def annotated(data: bytes, note: str) -> bytes:
    """The bytes of a JPEG or PNG file with ``note``, in ASCII, as its comment."""
    text = note.encode("ascii")
    if data.startswith(_SOI):
        return _inserted(data, _after_jfif(data), _segment(_COMMENT, text))
    body = b"tEXtComment\0" + text
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return _inserted(data, _PNG_HEADER, chunk)


def note_of(path: Path) -> str | None:
    """The note of a picture that this package wrote, empty if it has none; None of any other file."""
    try:
        with Image.open(path) as picture:
            if picture.getexif().get(SOFTWARE) != MARK:
                return None
            note = picture.info.get("comment", picture.info.get("Comment", ""))
            return note.decode("ascii", "replace") if isinstance(note, bytes) else str(note)
    except OSError:
        return None


@functools.cache
def _exif() -> bytes:
    exif = Image.Exif()
    exif[SOFTWARE] = MARK
    return b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")


def _segment(marker: bytes, content: bytes) -> bytes:
    return marker + (len(content) + 2).to_bytes(2, "big") + content


def _after_jfif(jpeg: bytes) -> int:
    return 4 + int.from_bytes(jpeg[4:6], "big") if jpeg[2:4] == _APP0 else 2


def _inserted(data: bytes, at: int, piece: bytes) -> bytes:
    return data[:at] + piece + data[at:]
