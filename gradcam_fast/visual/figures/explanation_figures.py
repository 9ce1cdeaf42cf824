"""Figures of an explanation: photo, heatmap and overlay under the class's name, and the most probable classes."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import TYPE_CHECKING

import torch

from ...probabilities import confidence, percent, probabilities_of, score_text
from ..colormaps import colorize
from ..overlay import overlay
from .page import Page
from .sizing import background, check_photo, resize_maps, resize_photo, size_within

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from ...explanation import Explanation

__all__ = ["class_titles", "classes", "explained", "panels", "top_classes"]

HEADER = "photo", "heatmap", "overlay"
# In pixels: the names of most classes fit on one line.
CLASS_NAME_WIDTH = 320


def panels(
    photo: Tensor,
    heatmap: Tensor,
    titles: Sequence[str],
    *,
    colormap: str = "jet",
    alpha: float | Tensor = 0.5,
    edges: bool = False,
) -> Figure:
    """Draw photo, heatmap and overlay side by side, one row for each heatmap, each row under its title.

    The three panels have one size, of the photo's proportions and at most 384 x 512 pixels, and are drawn pixel for
    pixel: a place in the photo is at the same place in the heatmap and in the overlay.

    Args:
        photo: (3,H,W) uint8 RGB.
        heatmap: (K,h,w), floating in [0,1]; it covers the whole photo, whatever its own resolution.
        titles: K titles.
        colormap, alpha, edges: as in :func:`gradcam_fast.overlay`; a tensor ``alpha`` has the heatmap's shape.

    Returns:
        A matplotlib figure, to be shown in a notebook or written by :func:`save`.

    Raises:
        TypeError, ValueError: shapes, dtypes or ranges that do not fit, an unknown colormap.
        ImportError: matplotlib or OpenCV is not installed.

    Example:
        >>> import torch
        >>> photo = torch.zeros(3, 192, 384, dtype=torch.uint8)
        >>> figure = panels(photo, torch.rand(1, 7, 7), ["a class, 50.0 %"])
        >>> [int(side) for side in figure.bbox.size]
        [1200, 268]
    """
    _check_rows(photo, heatmap, titles, alpha)
    page = Page(3, size_within(photo)[1])
    page.captions(HEADER)
    _add_rows(page, photo, heatmap, titles, colormap=colormap, alpha=alpha, edges=edges)
    return page.figure()


def explained(
    photos: Sequence[Tensor] | Tensor,
    explanation: Explanation,
    names: Sequence[str] | None = None,
    *,
    colormap: str = "jet",
    alpha: float = 0.5,
    edges: bool = False,
) -> Figure:
    """Draw an explanation as :func:`panels` does: a row for each photo and class, with the class's name and scores.

    Args:
        photos: the explained batch before preprocessing: B photos (3,H,W) uint8 RGB, of any sizes.
        explanation: what :func:`gradcam_fast.explain` returned for the batch.
        names: the name of each class; None takes ``explanation.names``, or else shows the numbers of the classes.
        colormap, alpha, edges: as in :func:`gradcam_fast.overlay`.

    Returns:
        A matplotlib figure.

    Raises:
        TypeError, ValueError: another number of photos, fewer names than classes, and as :func:`panels`.
        ImportError: matplotlib or OpenCV is not installed.

    Example:
        >>> import torch, gradcam_fast
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        ...     torch.nn.Linear(8, 2))
        >>> photos = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
        >>> figure = explained(photos, gradcam_fast.explain(model, photos / 255), ["cat", "dog"])
        >>> len(figure.axes)
        6
    """
    heatmap = explanation.heatmap
    if len(photos) != len(heatmap) or not len(heatmap) or heatmap.dim() not in (3, 4):
        raise ValueError(
            f"len(photos) is {len(photos)} but the heatmap has shape {tuple(heatmap.shape)}; expected B photos, at "
            "least one, and a heatmap (B,H,W) or (B,K,H,W)"
        )
    heatmaps = [maps.reshape(-1, *maps.shape[-2:]) for maps in heatmap]
    titles_per_image = [class_titles(explanation, image, names) for image in range(len(heatmaps))]
    for photo, maps, titles in zip(photos, heatmaps, titles_per_image, strict=True):
        _check_rows(photo, maps, titles, alpha)
    page = Page(3, max(size_within(photo)[1] for photo in photos))
    page.captions(HEADER)
    for photo, maps, titles in zip(photos, heatmaps, titles_per_image, strict=True):
        _add_rows(page, photo, maps, titles, colormap=colormap, alpha=alpha, edges=edges)
    return page.figure()


def classes(
    photo: Tensor,
    logits: Tensor,
    names: Sequence[str] | None = None,
    *,
    count: int = 5,
    probabilities: str | None = "auto",
) -> Figure:
    """Draw a photo and below it the classes with the highest outputs, each with a bar as long as its probability.

    Where the probabilities are not known, the lines have the scores and no bars.

    Args:
        photo: (3,H,W) uint8 RGB.
        logits: (N,), of the photo.
        names: the name of each class; None shows the numbers of the classes.
        count: how many classes.
        probabilities: what the outputs are, as in :mod:`gradcam_fast.probabilities`; ``softmax`` for a classifier's
            logits.

    Returns:
        A matplotlib figure.

    Raises:
        TypeError, ValueError: shapes or dtypes that do not fit.
        ImportError: matplotlib is not installed.

    Example:
        >>> import torch
        >>> photo = torch.zeros(3, 64, 64, dtype=torch.uint8)
        >>> figure = classes(photo, torch.tensor([0.0, 1.0]), ["cat", "dog"], probabilities="softmax")
        >>> [text.get_text() for text in figure.texts]
        ['73.1 %  dog (1)', '26.9 %  cat (0)']
    """
    check_photo(photo)
    if logits.dim() != 1 or not len(logits) or (names is not None and len(names) != len(logits)):
        received_names = "names=None" if names is None else f"len(names)={len(names)}"
        raise ValueError(
            f"logits has shape {tuple(logits.shape)} and {received_names}; expected (N,), of one photo, and N names or "
            "None"
        )
    size = size_within(photo)
    page = Page(1, max(CLASS_NAME_WIDTH, size[1]))
    page.gap()
    page.pictures([resize_photo(photo, size)])
    for line, probability in zip(*top_classes(logits, names, count, probabilities), strict=True):
        page.title(line)
        if not isnan(probability):
            page.bar(probability)
    return page.figure()


def class_titles(explanation: Explanation, image: int = 0, names: Sequence[str] | None = None) -> list[str]:
    """Describe each map of one image in a line: the class, its probability where it is known, and its raw score.

    Args:
        explanation: of a batch.
        image: index of the image in the batch.
        names: the name of each class; None takes ``explanation.names``, or else shows the numbers of the classes.

    Returns:
        One title, or K. For a callable target there is only the score. A map that is not valid is marked as empty.

    Raises:
        ValueError: fewer names than classes.

    Example:
        >>> import torch
        >>> from gradcam_fast import Explanation
        >>> one = torch.ones(1)
        >>> explanation = Explanation(
        ...     torch.rand(1, 4, 4), torch.tensor([[0.25, 0.75]]), torch.tensor([1]), one, one, one, one > 0, "layer4")
        >>> class_titles(explanation, names=["cat", "dog"])
        ['dog (1), 75.0 %, score 1']
    """
    names = explanation.names if names is None else names
    scores, valid = (tensor[image].reshape(-1).tolist() for tensor in (explanation.score, explanation.valid))
    every = explanation.probabilities
    probabilities = None if every is None else every[image].tolist()
    if probabilities is not None and names is not None and len(names) < len(probabilities) != 1:
        raise ValueError(f"len(names) is {len(names)} for {len(probabilities)} classes; give one name per class")
    titles = []
    for k, (score, is_valid) in enumerate(zip(scores, valid, strict=True)):
        parts = [score_text(score)]
        if probabilities is not None:
            assert explanation.target is not None
            index = explanation.target[image].reshape(-1).tolist()[k]
            if not isnan(probabilities[index]):
                parts.insert(0, percent(probabilities[index]))
            if len(probabilities) > 1:
                parts.insert(0, _named(index, names))
        elif len(scores) > 1:
            parts.insert(0, f"target {k}")
        title = ", ".join(parts)
        titles.append(title if is_valid else f"{title} (empty map)")
    return titles


def top_classes(
    logits: Tensor, names: Sequence[str] | None = None, count: int = 5, probabilities: str | None = "auto"
) -> tuple[list[str], list[float]]:
    """The classes with the highest outputs for one image: a line with probability, name and number, and probabilities.

    Args:
        logits: (N,).
        names: the name of each class, or None.
        count: how many classes; at most N are returned.
        probabilities: what the outputs are, as in :mod:`gradcam_fast.probabilities`. Where the probability is not
            known the line has the score, and the probability is NaN.

    Example:
        >>> import torch
        >>> top_classes(torch.tensor([0.0, 1.0]), ["cat", "dog"], probabilities="softmax")[0]
        ['73.1 %  dog (1)', '26.9 %  cat (0)']
        >>> top_classes(torch.tensor([0.0, 3.5]), ["cat", "dog"])[0]
        ['score 3.5  dog (1)', 'score 0  cat (0)']
    """
    top = logits.detach().float().topk(min(count, len(logits)))
    shares = probabilities_of(logits[None], probabilities)[0][top.indices].tolist()
    lines = [
        f"{confidence(share, score)}  {_named(index, names)}"
        for share, score, index in zip(shares, top.values.tolist(), top.indices.tolist(), strict=True)
    ]
    return lines, shares


def _named(index: int, names: Sequence[str] | None) -> str:
    return f"class {index}" if names is None else f"{names[index]} ({index})"


def _check_rows(photo: Tensor, heatmap: Tensor, titles: Sequence[str], alpha: float | Tensor) -> None:
    check_photo(photo)
    if heatmap.dim() != 3 or len(heatmap) != len(titles) or not titles:
        raise ValueError(
            f"heatmap has shape {tuple(heatmap.shape)} and len(titles) is {len(titles)}; "
            "expected (K,h,w) and K titles, at least one"
        )
    if isinstance(alpha, torch.Tensor) and alpha.shape != heatmap.shape:
        raise ValueError(f"alpha has shape {tuple(alpha.shape)}; expected the heatmap's {tuple(heatmap.shape)}")


def _add_rows(
    page: Page,
    photo: Tensor,
    heatmap: Tensor,
    titles: Sequence[str],
    *,
    colormap: str,
    alpha: float | Tensor,
    edges: bool,
) -> None:
    size = size_within(photo)
    heatmap = resize_maps(heatmap, size)
    behind = background(photo, size, edges=edges)[None]
    photo = resize_photo(photo, size)
    weight = resize_maps(alpha, size)[None] if isinstance(alpha, torch.Tensor) else alpha
    blends = overlay(behind, heatmap[None], colormap=colormap, alpha=weight)[0]
    for title, colors, blend in zip(titles, colorize(heatmap, colormap), blends, strict=True):
        page.title(title)
        page.pictures((photo, colors, blend))
