"""Reads videos as upright RGB frames with their times, decoded by PyAV."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

try:
    import av
except ImportError as error:
    raise ImportError("videos are read with PyAV, which is not installed; run pip install av") from error

from .writer import CLOCK, VideoFormat

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["UnreadableVideoError", "VideoFrame", "VideoReader"]

# A stream that sends nothing for this many seconds has ended.
TIMEOUT = 10


class UnreadableVideoError(Exception):
    """A file is missing, not a video, or damaged from its beginning; the message begins with its name."""


@dataclass(frozen=True)
class VideoFrame:
    """One upright picture, (H,W,3) uint8 RGB, and its time from the first frame, in seconds."""

    picture: NDArray[numpy.uint8]
    time: Fraction


class VideoReader:
    """An open video file, device or stream; iterate once for its frames, in any one thread.

    Args:
        source: a path or address that FFmpeg opens.
        live: whether it is a camera or a stream, whose frames come at their own pace.

    Attributes:
        format: the properties that the written video copies.
        total: about how many frames there are, or None.
        damage: after the iteration, a phrase that says what could not be read; empty if everything was read.

    Raises:
        UnreadableVideoError: in one sentence, which video and why.
    """

    def __init__(self, source: str | os.PathLike[str], *, live: bool = False) -> None:
        name = os.fspath(source)
        try:
            self._container = av.open(
                name, "r", format="v4l2" if Path(name).is_char_device() else None, timeout=TIMEOUT if live else None
            )
        except av.FFmpegError as error:
            reason = {
                av.error.FileNotFoundError: "no such file",
                av.error.InvalidDataError: "not a video in a format that FFmpeg reads, or damaged from its beginning",
            }.get(type(error), error.strerror)
            raise UnreadableVideoError(f"{name}: {reason}") from None
        if not self._container.streams.video:
            self._container.close()
            raise UnreadableVideoError(f"{name}: has no video in it, or the index of the video has been cut off")
        self._name = name
        self._live = live
        self._stream = stream = self._container.streams.video[0]
        # Decoding several frames at once is faster, but delays each frame until the next ones have come.
        stream.thread_type = "SLICE" if live else "AUTO"
        context = stream.codec_context
        rate = stream.average_rate or stream.guessed_rate or VideoFormat.rate
        clock = stream.time_base if stream.time_base and stream.time_base >= Fraction(1, 10**6) else CLOCK
        self.format = VideoFormat(
            clock=CLOCK if live else clock,
            rate=Fraction(rate),
            pixel_aspect=stream.sample_aspect_ratio or VideoFormat.pixel_aspect,
            colors=(context.colorspace, context.color_primaries, context.color_trc),
        )
        self._seconds = self._length()
        self.total = None if live else stream.frames or round(self._seconds * rate) or None
        self.damage = self._stopped = ""

    def _length(self) -> Fraction:
        if self._stream.duration and self._stream.time_base:
            return self._stream.duration * self._stream.time_base
        return Fraction(self._container.duration or 0, av.time_base)

    def __iter__(self) -> Iterator[VideoFrame]:
        """All frames that can be decoded, upright, resized to the size of the first one.

        Raises:
            UnreadableVideoError: no frame can be decoded.
        """
        size: tuple[int, int] | None = None
        start = time = Fraction(0)
        undecoded = count = 0
        for decoded in self._decoded():
            if decoded is None:
                undecoded += 1
                continue
            size = size or (decoded.width, decoded.height)
            picture = decoded.to_ndarray(format="rgb24", width=size[0], height=size[1])
            # Both the rotation, in degrees, and numpy's quarter turns are counterclockwise.
            picture = numpy.ascontiguousarray(numpy.rot90(picture, decoded.rotation // 90))
            # Frames without a time follow at the frame rate.
            has_time = decoded.pts is not None and decoded.time_base is not None
            shown_at = (
                decoded.pts * decoded.time_base if has_time else start + time + (1 / self.format.rate if count else 0)
            )
            start = start if count else shown_at
            time = shown_at - start
            count += 1
            yield VideoFrame(picture, time)
        if not count:
            raise UnreadableVideoError(f"{self._name}: has no frame that can be decoded")
        self._note_damage(count, undecoded, time + 1 / self.format.rate)

    def _decoded(self) -> Iterator[Any]:
        """Frames, and None for each packet that could not be decoded."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError as error:  # the next packet cannot be found
                timed_out = isinstance(error, av.error.ExitError)  # FFmpeg's error for a timeout
                self._stopped = f"nothing came for {TIMEOUT} s" if timed_out else str(error.strerror)
                yield from self._stream.decode(None)  # the frames that the decoder still holds
                return
            try:
                yield from packet.decode()
            except av.FFmpegError:
                yield None

    def _note_damage(self, count: int, undecoded: int, end: Fraction) -> None:
        # A truncated file ends without an error: only its stated length shows that frames are missing. It may be the
        # length of the sound, which can be a little longer.
        is_short = not self._live and self._seconds - end > max(Fraction(1, 2), self._seconds / 10)
        if self._stopped:
            self.damage = f"reading stopped after {count} frames ({self._stopped})"
        elif undecoded or is_short:
            self.damage = f"{count} of about {max(self.total or 0, count + undecoded)} frames could be decoded"

    def close(self) -> None:
        """Close the file or device."""
        self._container.close()
