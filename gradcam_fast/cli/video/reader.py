"""Videos as upright RGB frames with their times, decoded by PyAV.

Knows nothing of networks, explanations or threads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy

try:
    import av
except ImportError as error:
    raise ImportError("videos are read with PyAV, which is not installed; run pip install av") from error

from .frames import Frame
from .writer import CLOCK, Film

__all__ = ["UnreadableVideoError", "VideoReader"]


# A stream that says nothing for so many seconds has ended.
SILENCE = 10


class UnreadableVideoError(Exception):
    """A video that is missing, none, or damaged from its beginning; the message names it."""


class VideoReader:
    """A video file, device or address, opened; iterate once for its frames, in any one thread.

    Args:
        source: what FFmpeg opens.
        live: whether it is a camera or a stream, whose frames come at their own pace.

    Attributes:
        film: what a recording takes over.
        total: about how many frames there are, or None.
        damage: after the iteration, what could not be read, in words; empty if all is well.

    Raises:
        UnreadableVideoError: in one sentence, which and why.
    """

    def __init__(self, source: str | os.PathLike[str], *, live: bool = False) -> None:
        name = os.fspath(source)
        try:
            self._container = av.open(
                name, "r", format="v4l2" if Path(name).is_char_device() else None, timeout=SILENCE if live else None
            )
        except av.FFmpegError as error:
            reason = {
                av.error.FileNotFoundError: "no such file",
                av.error.InvalidDataError: "not a video in a format that FFmpeg reads, or damaged from its beginning",
            }.get(type(error), error.strerror)
            raise UnreadableVideoError(f"{name}: {reason}") from None
        if not self._container.streams.video:
            self._container.close()
            raise UnreadableVideoError(f"{name}: holds no video, or the part that says where it is has been cut off")
        self._name = name
        self._live = live
        self._stream = stream = self._container.streams.video[0]
        # Decoding several frames at once is faster, but gives each of them only when the next ones have come.
        stream.thread_type = "SLICE" if live else "AUTO"
        context = stream.codec_context
        rate = stream.average_rate or stream.guessed_rate or Film.rate
        clock = stream.time_base if stream.time_base and stream.time_base >= Fraction(1, 10**6) else CLOCK
        self.film = Film(
            clock=CLOCK if live else clock,
            rate=Fraction(rate),
            shape=stream.sample_aspect_ratio or Film.shape,
            colors=(context.colorspace, context.color_primaries, context.color_trc),
        )
        self._seconds = self._length()
        self.total = None if live else stream.frames or round(self._seconds * rate) or None
        self.damage = self._stopped = ""

    def _length(self) -> Fraction:
        if self._stream.duration and self._stream.time_base:
            return self._stream.duration * self._stream.time_base
        return Fraction(self._container.duration or 0, av.time_base)

    def __iter__(self) -> Iterator[Frame]:
        """All frames that can be decoded, upright, of the first one's size.

        Raises:
            UnreadableVideoError: there is none.
        """
        size: tuple[int, int] | None = None
        start = time = Fraction(0)
        bad = count = 0
        for decoded in self._decoded():
            if decoded is None:
                bad += 1
                continue
            size = size or (decoded.width, decoded.height)
            picture = decoded.to_ndarray(format="rgb24", width=size[0], height=size[1])
            # The rotation is counterclockwise, in degrees, and so are quarter turns.
            picture = numpy.ascontiguousarray(numpy.rot90(picture, decoded.rotation // 90))
            # Frames that tell no time follow upon each other.
            known = decoded.pts is not None and decoded.time_base is not None
            shown = decoded.pts * decoded.time_base if known else start + time + (1 / self.film.rate if count else 0)
            start = start if count else shown
            time = shown - start
            count += 1
            yield Frame(picture, time)
        if not count:
            raise UnreadableVideoError(f"{self._name}: holds no frame that can be decoded")
        self._notice(count, bad, time + 1 / self.film.rate)

    def _decoded(self) -> Iterator[Any]:
        """Frames, and None for each packet that could not be decoded."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError as error:  # what follows cannot be found any more
                silent = isinstance(error, av.error.ExitError)  # FFmpeg's word for a timeout
                self._stopped = f"nothing came for {SILENCE} s" if silent else str(error.strerror)
                yield from self._stream.decode(None)  # those that the decoder still holds
                return
            try:
                yield from packet.decode()
            except av.FFmpegError:
                yield None

    def _notice(self, count: int, bad: int, end: Fraction) -> None:
        # A file that was cut off just ends; only what it says of its length tells. Sound may be a little longer.
        short = not self._live and self._seconds - end > max(Fraction(1, 2), self._seconds / 10)
        if self._stopped:
            self.damage = f"reading stopped after {count} frames ({self._stopped})"
        elif bad or short:
            self.damage = f"only {count} of about {max(self.total or 0, count + bad)} frames could be decoded"

    def close(self) -> None:
        """Let go of the file or device."""
        self._container.close()
