"""Videos explained frame by frame: every frame of a file, the newest of a live source.

Knows nothing of formats, which `video_reader` and `recording` do, nor of options and exit codes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch

from ...explainer import Explainer
from ...visual.colormaps import colormap_table
from .channel import ahead, behind
from .frames import Batch, Drawing, Frame, prepared
from .reader import UnreadableVideoError, VideoReader
from .writer import SUFFIXES, Film, Recording

if TYPE_CHECKING:
    from torch import Tensor

    from ...explanation import Explanation
    from ..networks import Network
    from ..pipeline import Question

__all__ = ["UnreadableVideoError", "explain_video", "is_live"]

STREAMS = ("rtsp://", "rtsps://", "rtmp://", "rtmps://", "rtp://", "udp://", "srt://", "tcp://")


def explain_video(
    network: Network,
    source: str | os.PathLike[str] | Iterable[Any],
    out: str | os.PathLike[str] | Callable[[Tensor, float], None],
    question: Question,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    batch_size: int = 8,
    colormap: str = "jet",
    alpha: float = 0.5,
    tell: Callable[[str], None] = print,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> int:
    """Lay over each frame of a video where the network looked in it.

    Of a file every frame is explained, in batches, and the recording has the file's size, times and colours, turned
    upright, without sound. Of a live source the newest frame is explained, one at a time; those that come meanwhile are
    never seen, so that what is shown is as old as one explanation takes; it runs until the source ends or Ctrl-C.

    Args:
        network: what is asked; its model is moved to ``device`` and ``dtype``.
        source: a file or an address; or, live, a camera (``/dev/video0``), a stream (``rtsp://...``) or anything to
            iterate over for frames, (H,W,3) uint8 RGB arrays.
        out: file to write (``.mp4``, ``.mov``, ``.mkv`` or ``.webm``), complete or not there at all; or a callable that
            is given each picture, (3,H,W) uint8 on the CPU, and its time in seconds, in the calling thread.
        question: which class, where, by which method; of one class at a time.
        batch_size: frames explained together; about five times as many are in memory.
        colormap, alpha: as in :func:`gradcam_fast.overlay`.
        tell: is told what was explained, and what of the video is damaged.
        progress: is told how many frames are done, of about how many (None: unknown); perhaps in another thread.

    Returns:
        How many frames were explained.

    Raises:
        UnreadableVideoError: the source holds no frame that can be read.
        ValueError: an argument that cannot work, before anything is read.
    """
    _check(source, out, question, batch_size)
    colormap_table(colormap, torch.device("cpu"))  # an unknown name is told before anything is read
    live = is_live(source)
    reader = VideoReader(source, live=live) if isinstance(source, (str, os.PathLike)) else None
    film, total, close = (reader.film, reader.total, reader.close) if reader else (Film(), None, lambda: None)
    frames: Iterator[Any] = iter(reader if reader else source)  # type: ignore[arg-type]
    network.model.to(device=device, dtype=dtype)
    drawing = Drawing(colormap, alpha, torch.device(device))
    with ExitStack() as stack:
        batches: Iterable[Batch]
        if live:
            newest = stack.enter_context(ahead(_arriving(frames), newest=True, close=close))
            batches = (prepared([frame], network.preprocess) for frame in newest)
        else:
            groups = iter(lambda: list(islice(frames, batch_size)), [])
            preparing = (prepared(group, network.preprocess) for group in groups)
            batches = stack.enter_context(ahead(preparing, close=close))
        write = _shown_by(out) if callable(out) else stack.enter_context(Recording(Path(out), film)).write

        def draw(explained: tuple[Batch, Explanation]) -> None:
            pictures = drawing(*explained)
            for frame, picture in zip(explained[0].frames, pictures, strict=True):
                write(picture, frame.time)
            progress(drawing.count, total)

        put = draw if callable(out) else stack.enter_context(behind(draw))
        try:
            for explained in _explained(batches, network, question, device, dtype):
                put(explained)
        except KeyboardInterrupt:
            if not live:
                raise
    tell(drawing.summary(network.class_names))
    if reader and reader.damage:
        tell(f"{source}: {reader.damage}; these are kept")
    return drawing.count


def is_live(source: Any) -> bool:
    """Whether a source brings frames at its own pace: a camera, a stream, or whatever is no file and no address."""
    if not isinstance(source, (str, os.PathLike)):
        return True
    return os.fspath(source).startswith(STREAMS) or Path(source).is_char_device()


def _check(source: Any, out: Any, question: Question, batch_size: int) -> None:
    if question.topk not in (None, 1):
        raise ValueError(f"topk={question.topk} asks for several maps of each frame; give 1, or one target class")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is below 1")
    if callable(out):
        return
    path = Path(out)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: videos are written as {', '.join(SUFFIXES)}; give a name that ends in one of these")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder; make it first")
    if isinstance(source, (str, os.PathLike)) and path.exists() and Path(source).exists() and path.samefile(source):
        raise ValueError(f"{path} is the video itself; give another name for the explained one")


def _arriving(source: Iterator[Any]) -> Iterator[Frame]:
    """Live frames with the time of their arrival, from the first one on."""
    start = None
    for arrived in source:
        picture = arrived.picture if isinstance(arrived, Frame) else numpy.asarray(arrived)
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != numpy.uint8:
            raise ValueError(f"a frame is {picture.shape} of {picture.dtype}; expected (H,W,3) of uint8, RGB")
        now = time.monotonic()
        start = now if start is None else start
        yield Frame(picture, Fraction(now - start))


def _explained(
    batches: Iterable[Batch], network: Network, question: Question, device: str | torch.device, dtype: torch.dtype
) -> Iterator[tuple[Batch, Explanation]]:
    explainer = None
    for batch in batches:
        if explainer is None or explainer._size != batch.seen_size:
            explainer = Explainer(network.model, layer=question.layer, method=question.method, size=batch.seen_size)
        yield batch, explainer(batch.images.to(device, dtype), question.target)


def _shown_by(show: Callable[[Tensor, float], None]) -> Callable[[Any, Fraction], None]:
    return lambda picture, time: show(torch.from_numpy(picture).permute(2, 0, 1), float(time))
