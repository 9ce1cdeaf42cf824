"""What is asked about one photo, and what is answered; both can be sent to another process."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from ..pipeline.results import PhotoResult

__all__ = ["PhotoAnswer", "PhotoQuery", "QueryError", "Verb", "is_sampled"]

Verb = Literal["predict", "explain"]


@dataclass(frozen=True)
class PhotoQuery:
    """A photo, and what is asked about it.

    Attributes:
        data: the bytes of the photo's file.
        verb: whether it is explained, too.
        targets: the classes to explain, by number or a part of their name; none: the most probable ones.
        topk: how many of the most probable classes are explained, or of a prediction named; None: 1, or 5.
        layer, method: as for :func:`gradcam_fast.explain`.
        longest: the longest side in pixels of the photo in the answer; None: without the photo.
        name: what an error calls the photo.
    """

    data: bytes
    verb: Verb
    targets: tuple[str | int, ...] = ()
    topk: int | None = None
    layer: str | None = None
    method: str = "gradcam"
    longest: int | None = None
    name: str = "photo"


@dataclass(frozen=True)
class PhotoAnswer:
    """What is known of a photo.

    Attributes:
        result: the most probable classes; and of those explained, the maps.
        size: (width, height) of the upright photo.
        box: (left, top, right, bottom) of the part that the network saw and the maps cover, in pixels of the photo.
        input_size: (height, width) of the network's input.
        pixels: this part as (H,W,3) uint8 RGB, if it was asked for.
        method: by which the maps were made.
    """

    result: PhotoResult
    size: tuple[int, int]
    box: tuple[int, int, int, int]
    input_size: tuple[int, int]
    pixels: NDArray[Any] | None
    method: str


class QueryError(ValueError):
    """A query that cannot be answered, in one sentence.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[type[QueryError], tuple[str, int]]:
        return QueryError, (str(self), self.status)


def is_sampled(data: bytes, share: float) -> bool:
    """Whether a photo is in a sample: about ``share`` of all are, and the same photo always is or never.

    Example:
        >>> sum(is_sampled(bytes([number]), 0.25) for number in range(256))
        68
    """
    if share <= 0:
        return False
    digest = hashlib.blake2b(data, digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64
