"""Videos explained frame by frame: every frame of a file, the newest frame of a live source."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch

from ... import Explainer, overlay
from ...visual.colormaps import colormap_table
from ...visual.stamp import RANDOM_WEIGHTS, stamped
from .channel import read_ahead, write_behind
from .reader import UnreadableVideoError, VideoFrame, VideoReader
from .writer import VIDEO_SUFFIXES, VideoFormat, VideoWriter

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from ... import Explanation
    from ...pipeline.networks import Network
    from ...pipeline.question import Question
    from ...preprocess import Preprocess

__all__ = ["UnreadableVideoError", "explain_video", "is_live"]

STREAMS = ("rtsp://", "rtsps://", "rtmp://", "rtmps://", "rtp://", "udp://", "srt://", "tcp://")


def explain_video(
    network: Network,
    source: str | os.PathLike[str] | Iterable[Any],
    out: str | os.PathLike[str] | Callable[[Tensor, float], None],
    options: Question,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    batch_size: int = 8,
    colormap: str = "jet",
    alpha: float = 0.5,
    tell: Callable[[str], None] = print,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> int:
    """Lay a heatmap over each frame of a video.

    Of a file, every frame is explained, in batches; the written video has the file's size, times and colours, is turned
    upright, and has no sound. Of a live source, only the newest frame is explained, one at a time; frames that arrive
    in the meantime are dropped, so that the pictures are late by the time of one explanation only. This goes on until
    the source ends, or until Ctrl-C.

    Args:
        network: the classifier; its model is moved to ``device`` and ``dtype``.
        source: a file or an address; or a live source: a camera (``/dev/video0``), a stream (``rtsp://...``) or any
            iterable of frames, (H,W,3) uint8 RGB arrays.
        out: file to write (``.mp4``, ``.mov``, ``.mkv`` or ``.webm``), complete or absent at any time; or a callable
            that gets each picture, (3,H,W) uint8 on the CPU, and its time in seconds, in the calling thread.
        options: which class, layer and method; one class at a time.
        batch_size: frames explained together; about five times as many are in memory.
        colormap, alpha: as in :func:`gradcam_fast.overlay`.
        tell: called with a line about what was explained, and with one about damage in the video.
        progress: called from any thread with the number of explained frames and of all frames (None: unknown).

    Returns:
        How many frames were explained.

    Raises:
        UnreadableVideoError: no frame of the source can be read.
        ValueError: an argument that cannot work; raised before anything is read.
    """
    _check(source, out, options, batch_size)
    colormap_table(colormap, torch.device("cpu"))  # refuses an unknown name before anything is read
    live = is_live(source)
    reader = VideoReader(source, live=live) if isinstance(source, (str, os.PathLike)) else None
    format, total, close = (
        (reader.format, reader.total, reader.close) if reader else (VideoFormat(), None, lambda: None)
    )
    frames: Iterator[Any] = iter(reader if reader else source)  # type: ignore[arg-type]
    network.model.to(device=device, dtype=dtype)
    stamp = RANDOM_WEIGHTS if RANDOM_WEIGHTS in network.title else ""
    overlays = FrameOverlays(colormap, alpha, torch.device(device), stamp)
    with ExitStack() as stack:
        batches: Iterable[FrameBatch]
        if live:
            newest = stack.enter_context(read_ahead(_timed(frames), newest=True, close=close))
            batches = (FrameBatch.prepare([frame], network.preprocess) for frame in newest)
        else:
            groups = iter(lambda: list(islice(frames, batch_size)), [])
            prepared = (FrameBatch.prepare(group, network.preprocess) for group in groups)
            batches = stack.enter_context(read_ahead(prepared, close=close))
        write = _to_callable(out) if callable(out) else stack.enter_context(VideoWriter(Path(out), format)).write

        def draw(batch_and_explanation: tuple[FrameBatch, Explanation]) -> None:
            batch, explanation = batch_and_explanation
            for frame, picture in zip(batch.frames, overlays.draw(batch, explanation), strict=True):
                write(picture, frame.time)
            progress(overlays.count, total)

        draw_later = draw if callable(out) else stack.enter_context(write_behind(draw))
        try:
            for batch_and_explanation in _explain(batches, network, options, device, dtype):
                draw_later(batch_and_explanation)
        except KeyboardInterrupt:
            if not live:
                raise
    tell(overlays.summary(network.class_names))
    if reader and reader.damage:
        tell(f"{source}: {reader.damage}; only these were explained")
    return overlays.count


def is_live(source: Any) -> bool:
    """Whether frames come at the source's own pace: from a camera, a stream, or an iterable."""
    if not isinstance(source, (str, os.PathLike)):
        return True
    return os.fspath(source).startswith(STREAMS) or Path(source).is_char_device()


def _check(source: Any, out: Any, options: Question, batch_size: int) -> None:
    if options.topk not in (None, 1):
        raise ValueError(f"topk={options.topk}, but a video shows one map per frame; give topk=1, or one target class")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; give at least 1")
    if callable(out):
        return
    path = Path(out)
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise ValueError(
            f"{path} has no known video suffix; give a name that ends in one of {', '.join(VIDEO_SUFFIXES)}"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder; create it first")
    if isinstance(source, (str, os.PathLike)) and path.exists() and Path(source).exists() and path.samefile(source):
        raise ValueError(f"{path} is the source itself; give another name for the explained video")


@dataclass(frozen=True)
class FrameBatch:
    """Frames of one size, the network's input for them (B,3,h,w), and the box that it shows, in pixels of a frame."""

    frames: list[VideoFrame]
    images: Tensor
    left: int
    top: int
    right: int
    bottom: int

    @classmethod
    def prepare(cls, frames: list[VideoFrame], preprocess: Preprocess) -> FrameBatch:
        """Preprocess frames for the network."""
        height, width = frames[0].picture.shape[:2]
        images = preprocess([frame.picture for frame in frames]).images
        return cls(frames, images, *preprocess.seen_box((width, height)))

    @property
    def seen_size(self) -> tuple[int, int]:
        """(height, width) of the box."""
        return self.bottom - self.top, self.right - self.left


class FrameOverlays:
    """Lays heatmaps over frames, at the frames' size, and counts them.

    Attributes:
        count: number of frames so far.
    """

    def __init__(self, colormap: str, alpha: float, device: torch.device, stamp: str = "") -> None:
        self.count = 0
        self._colormap, self._alpha, self._device = colormap, alpha, device
        self._stamp = stamp
        self._classes: Counter[int] = Counter()
        self._layer: object = ""

    def draw(self, batch: FrameBatch, explanation: Explanation) -> NDArray[numpy.uint8]:
        """The pictures, (B,H,W,3) uint8; outside of the box that the network sees, the frames are unchanged."""
        pictures = torch.from_numpy(numpy.stack([frame.picture for frame in batch.frames])).to(self._device)
        # Only the part of the frame under the map is blended; the map may reach beyond the frame.
        left, top = max(batch.left, 0), max(batch.top, 0)
        seen = pictures[:, top : max(batch.bottom, 0), left : max(batch.right, 0)]
        box = batch.left - left, batch.top - top, batch.right - left, batch.bottom - top
        blended = overlay(
            seen.permute(0, 3, 1, 2), explanation.heatmap, box=box, colormap=self._colormap, alpha=self._alpha
        )
        seen.copy_(blended.permute(0, 2, 3, 1))
        assert explanation.target is not None  # a Question asks for classes, never for a callable
        self._classes.update(explanation.target.tolist())
        self._layer = explanation.layer
        self.count += len(batch.frames)
        drawn = pictures.cpu().numpy()
        return numpy.stack([stamped(picture, self._stamp) for picture in drawn]) if self._stamp else drawn

    def summary(self, class_names: Sequence[str]) -> str:
        """How many frames were explained, at which layer, and which class was explained most often."""
        if not self.count:
            return "the source sent no frames"
        ((number, times),) = self._classes.most_common(1)
        frames = "1 frame" if self.count == 1 else f"{self.count} frames"
        return f"{frames} explained at layer {self._layer}; class {class_names[number]} ({number}) in {times} of them"


def _timed(frames: Iterator[Any]) -> Iterator[VideoFrame]:
    """Live frames with the time of their arrival, counted from the first one."""
    start = None
    for frame in frames:
        picture = frame.picture if isinstance(frame, VideoFrame) else numpy.asarray(frame)
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != numpy.uint8:
            raise ValueError(f"a frame has shape {picture.shape} and dtype {picture.dtype}; expected (H,W,3) uint8 RGB")
        now = time.monotonic()
        start = now if start is None else start
        yield VideoFrame(picture, Fraction(now - start))


def _explain(
    batches: Iterable[FrameBatch],
    network: Network,
    options: Question,
    device: str | torch.device,
    dtype: torch.dtype,
) -> Iterator[tuple[FrameBatch, Explanation]]:
    explainer, size = None, None
    for batch in batches:
        if explainer is None or size != batch.seen_size:
            size = batch.seen_size
            explainer = Explainer(network.model, layer=options.layer, method=options.method, size=size)
        yield batch, explainer(batch.images.to(device, dtype), options.target)


def _to_callable(show: Callable[[Tensor, float], None]) -> Callable[[Any, Fraction], None]:
    return lambda picture, time: show(torch.from_numpy(picture).permute(2, 0, 1), float(time))
