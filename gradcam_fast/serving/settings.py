"""The limits and choices of a service."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..ops.arguments import METHODS as CAM_METHODS
from ..pipeline.processors import cores

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ServiceSettings"]


@dataclass(frozen=True)
class ServiceSettings:
    """The limits and choices of a service.

    Attributes:
        api_key: the key that clients send as ``Authorization: Bearer KEY``; None lets everybody in.
        allowed_hosts: the names under which clients reach the service, in the ``Host`` header; ``*`` is any.
        max_batch: how many photos the model takes at once; None: 4 on a CPU, 32 on a GPU.
        threads: how many threads the model uses on a CPU; None: one for each core.
        max_requests: how many requests are answered at the same time; more are refused (503).
        max_bytes: how many bytes the bodies of these may have together; more are refused (503).
        max_body: the largest body of one request in bytes (413).
        max_photos: the most photos in one request.
        max_pixels: larger photos are refused before they are decoded. Decoding takes up to 20 bytes of memory a pixel,
            for one photo on each core.
        max_classes: the most classes that are explained for one photo.
        methods: the methods that clients may ask for. Those of the default take one forward and one backward.
        deadline: seconds after which a request is given up (504); clients may ask for less.
        drain: seconds from SIGTERM until no new connection is taken; until then the service says that it is not ready.
        sample_rate: the share of photos that are explained when only their prediction was asked for, so that the
            metrics show where the model looks. A photo is in the share by its bytes: always, or never.
        when: of the photos in this share, only those are explained for which this function of the logits (B,N) is True.
    """

    api_key: str | None = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] = ("*",)
    max_batch: int | None = None
    threads: int = field(default_factory=cores)
    max_requests: int = 128
    max_bytes: int = 128 * 2**20
    max_body: int = 32 * 2**20
    max_photos: int = 16
    max_pixels: int = 50_000_000
    max_classes: int = 20
    methods: tuple[str, ...] = CAM_METHODS
    deadline: float = 60.0
    drain: float = 2.0
    sample_rate: float = 0.0
    when: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        for name in ("threads", "max_requests", "max_bytes", "max_body", "max_photos", "max_pixels", "max_classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is no limit; give a number from 1")
        if self.max_batch is not None and self.max_batch < 1:
            raise ValueError(f"max_batch={self.max_batch} is no number of photos; give a number from 1")
        if not 0 <= self.sample_rate <= 1:
            raise ValueError(f"sample_rate={self.sample_rate} is no share; give a number from 0 to 1")
        if self.deadline <= 0 or self.drain < 0:
            raise ValueError(f"deadline={self.deadline} and drain={self.drain} are seconds; give positive numbers")
