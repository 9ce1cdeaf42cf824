"""Photo files in, explained pictures out: what the subcommands do with every batch of photos.

Knows nothing of options, exit codes or particular networks.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gradcam_fast import explain

from .figures import is_own, panels, save
from .photos import UnreadablePhotoError, pixels, read_photo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from matplotlib.figure import Figure
    from PIL.Image import Image
    from torch import Tensor

    from gradcam_fast import Explanation

    from .models import Network

__all__ = ["Question", "draw", "explain_files", "explain_photos", "most_probable", "picture_paths"]

# All photos of a batch are in memory at full size.
BATCH = 8


@dataclass(frozen=True)
class Question:
    """What is asked about every photo: which classes, where in the network, by which method.

    Attributes:
        target: the number of one class, or None.
        topk: how many of the most probable classes, or None.
        layer: dotted name of the target layer, or None to find it.
        method: as in :func:`gradcam_fast.explain`.
    """

    target: int | None = None
    topk: int | None = None
    layer: str | None = None
    method: str = "gradcam"


def explain_files(
    network: Network,
    paths: Sequence[Path],
    out: Path,
    question: Question,
    *,
    colormap: str,
    tell: Callable[[str], None],
    complain: Callable[[str], None],
) -> int:
    """Explain photo files batch by batch: tell the most probable classes of each, and draw its picture in ``out``.

    Returns:
        How many photos could not be read; each was complained of and skipped.
    """
    out.mkdir(parents=True, exist_ok=True)
    unreadable = 0
    work = list(zip(paths, picture_paths(paths, out), strict=True))
    for start in range(0, len(work), BATCH):
        readable: list[tuple[Path, Path, Image]] = []
        for path, picture in work[start : start + BATCH]:
            try:
                readable.append((path, picture, read_photo(path)))
            except UnreadablePhotoError as error:
                complain(f"{error}; skipped")
                unreadable += 1
        if not readable:
            continue
        explanation = explain_photos(network, [photo for _, _, photo in readable], question)
        for index, (path, picture, photo) in enumerate(readable):
            tell(f"{path}\n{most_probable(network, explanation.logits[index])}")
            save(draw(network, photo, explanation, index, colormap=colormap), picture)
            tell(f"  picture: {picture}\n")
    return unreadable


def explain_photos(network: Network, photos: Sequence[Image], question: Question) -> Explanation:
    """Explain RGB photos of any sizes in one call: one forward for all of them and all their classes."""
    return explain(
        network.model,
        network.preprocess(photos),
        target=question.target,
        topk=question.topk,
        layer=question.layer,
        method=question.method,
    )


def most_probable(network: Network, logits: Tensor, count: int = 5) -> str:
    """The most probable classes of one photo, logits (number of classes,), as lines of text."""
    probabilities, classes = logits.softmax(0).topk(min(count, len(logits)))
    lines = zip(probabilities.tolist(), classes.tolist(), strict=True)
    return "\n".join(f"  {100 * p:5.1f} %  {network.class_names[c]} ({c})" for p, c in lines)


def draw(network: Network, photo: Image, explanation: Explanation, index: int, *, colormap: str = "jet") -> Figure:
    """Photo, heatmap and overlay of the explanation's image ``index``, a row for each class that was asked about."""
    heatmap = explanation.heatmap[index]
    heatmap = heatmap.reshape(-1, *heatmap.shape[-2:])
    assert explanation.target is not None  # a Question asks about classes, never about a callable
    targets = explanation.target[index].reshape(-1).tolist()
    valid = explanation.valid[index].reshape(-1).tolist()
    probabilities = explanation.logits[index].softmax(0)
    titles = [
        f"{network.class_names[c]}, {100 * float(probabilities[c]):.1f} %" + ("" if ok else " (empty map: no evidence)")
        for c, ok in zip(targets, valid, strict=True)
    ]
    return panels(pixels(photo), heatmap, titles, colormap=colormap)


def picture_paths(photos: Sequence[Path], out: Path) -> list[Path]:
    """Where each photo's picture goes: ``out/<name>-gradcam.jpg``, numbered where names meet.

    No two pictures share a path, also where the file system ignores case, and none replaces a file that is not itself a
    picture of an earlier run.
    """
    taken = {_key(photo) for photo in photos}
    pictures = []
    for photo in photos:
        free = (path for path in _candidates(photo, out) if _key(path) not in taken)
        picture = next(path for path in free if not path.exists() or is_own(path))
        taken.add(_key(picture))
        pictures.append(picture)
    return pictures


def _candidates(photo: Path, out: Path) -> Iterator[Path]:
    yield out / f"{photo.stem}-gradcam.jpg"
    for number in itertools.count(2):
        yield out / f"{photo.stem}-gradcam-{number}.jpg"


def _key(path: Path) -> str:
    return str(path.resolve()).casefold()
