"""Writes pictures as a video file, encoded by PyAV."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

try:
    import av
except ImportError as error:
    raise ImportError("videos are written with PyAV, which is not installed; run pip install av") from error

if TYPE_CHECKING:
    import numpy
    from av.container import OutputContainer
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

__all__ = ["CLOCK", "VIDEO_SUFFIXES", "VideoFormat", "VideoWriter"]

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm")
# Good quality, and fast enough not to slow down the network.
ENCODERS = {
    "libx264": {"crf": "20", "preset": "veryfast"},
    "libvpx-vp9": {"crf": "30", "b": "0", "deadline": "realtime", "cpu-used": "8", "row-mt": "1"},
    "mpeg4": {"flags": "+qscale", "global_quality": "354"},
}
# No frame rate needs a finer clock than MPEG's own, and no container stores one.
CLOCK = Fraction(1, 90000)


@dataclass(frozen=True)
class VideoFormat:
    """The properties that the written video copies from its source.

    Attributes:
        clock: the unit of all times, in seconds.
        rate: average number of frames per second.
        pixel_aspect: width over height of one pixel.
        colors: FFmpeg's numbers for the matrix, primaries and transfer by which the source stores RGB.
    """

    clock: Fraction = CLOCK
    rate: Fraction = Fraction(25)
    pixel_aspect: Fraction = Fraction(1)
    colors: tuple[int, int, int] = (2, 2, 2)


class VideoWriter:
    """A video file that gets its name only at the end of the ``with`` block, when it is complete.

    An existing file of that name is replaced. If the block raises, or nothing was written, nothing is left behind.

    Args:
        path: ends in one of `VIDEO_SUFFIXES`.
        format: of the source.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, format: VideoFormat) -> None:
        self._path = path
        self._partial = path.with_name(f".{uuid.uuid4().hex}.partial{path.suffix}")
        preferred = "libvpx-vp9" if path.suffix.lower() == ".webm" else "libx264"
        self._encoder = preferred if preferred in av.codecs_available else "mpeg4"
        self._format = format
        # The clock of MPEG-4 has 16 bits.
        self._clock = format.clock if self._encoder != "mpeg4" else Fraction(1, 60000)
        self._container: OutputContainer | None = None
        self._last = -1

    def write(self, picture: NDArray[numpy.uint8], time: Fraction) -> None:
        """Add a picture, (H,W,3) uint8 RGB, all of one size, shown from ``time`` in seconds."""
        if self._container is None:
            self._open(*picture.shape[:2])
        assert self._container is not None
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        # Converted back as the source stores it, so that no colour changes.
        matrix, primaries, transfer = self._format.colors
        frame = frame.reformat(
            self._stream.width, self._stream.height, self._stream.pix_fmt, dst_colorspace=matrix, dst_color_range=1
        )
        frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc = matrix, 1, primaries, transfer
        frame.pts = self._last = max(round(time / self._clock), self._last + 1)
        frame.time_base = self._clock
        self._container.mux(self._stream.encode(frame))

    def _open(self, height: int, width: int) -> None:
        self._container = av.open(str(self._partial), "w")
        rate = self._format.rate.limit_denominator(65535)
        self._stream = cast(
            "VideoStream", self._container.add_stream(self._encoder, rate=rate, options=ENCODERS[self._encoder])
        )
        self._stream.width, self._stream.height = width, height
        # 4:2:0 halves the sides, which must be even for H.264; VP9 and MPEG-4 round up by themselves.
        odd = self._encoder == "libx264" and (width % 2 or height % 2)
        self._stream.pix_fmt = "yuv444p" if odd else "yuv420p"
        context = self._stream.codec_context
        context.time_base = self._clock
        context.sample_aspect_ratio = self._format.pixel_aspect
        context.colorspace, context.color_primaries, context.color_trc = self._format.colors
        context.color_range = 1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if self._container is None:
            return
        try:
            if failed is None:
                self._container.mux(self._stream.encode())
            self._container.close()
            if failed is None:
                self._partial.replace(self._path)
        finally:
            self._partial.unlink(missing_ok=True)
