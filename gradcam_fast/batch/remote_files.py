"""Photo files on object stores and other remote file systems, read by pyarrow."""

from __future__ import annotations

import re

from pyarrow.fs import FileSystem, FileType

from ..exceptions import UnreadablePhotoError
from ..photo_decoding import max_file_bytes

__all__ = ["is_address", "read_remote"]

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")


def is_address(path: str) -> bool:
    """Whether a path is the address of a file system's file, and no path of this machine.

    Example:
        >>> is_address("s3://bucket/cat.jpg"), is_address("/photos/cat.jpg")
        (True, False)
    """
    return _SCHEME.match(path) is not None


def read_remote(address: str, max_pixels: int) -> bytes:
    """The bytes of a file on a file system that pyarrow reads, such as ``s3://``, ``gs://`` or ``hdfs://``.

    Raises:
        UnreadablePhotoError: there is no such file, it cannot be read, or it is too large for a photo of
            ``max_pixels`` pixels.
    """
    try:
        filesystem, path = FileSystem.from_uri(address)
        info = filesystem.get_file_info(path)
        if info.type == FileType.NotFound:
            raise FileNotFoundError("no such file")
        if info.type != FileType.File:
            raise ValueError("not a regular file")
        if info.size > max_file_bytes(max_pixels):
            raise ValueError(f"a file of {info.size:,} bytes is too large for a photo of {max_pixels:,} pixels")
        with filesystem.open_input_file(path) as file:
            return file.read()
    except Exception as error:  # file systems raise everything from OSError to ArrowInvalid
        raise UnreadablePhotoError(f"{address}: {' '.join(str(error).split())}") from error
