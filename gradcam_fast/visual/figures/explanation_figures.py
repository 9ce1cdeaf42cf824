"""Figures of an explanation: photo, heatmap and overlay under the class's name, and the most probable classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

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
        names: the name of each class; None shows the numbers of the classes.
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


def classes(photo: Tensor, logits: Tensor, names: Sequence[str] | None = None, *, count: int = 5) -> Figure:
    """Draw a photo and below it its most probable classes, each with a bar as long as its probability.

    Args:
        photo: (3,H,W) uint8 RGB.
        logits: (N,), of the photo.
        names: the name of each class; None shows the numbers of the classes.
        count: how many classes.

    Returns:
        A matplotlib figure.

    Raises:
        TypeError, ValueError: shapes or dtypes that do not fit.
        ImportError: matplotlib is not installed.

    Example:
        >>> import torch
        >>> photo = torch.zeros(3, 64, 64, dtype=torch.uint8)
        >>> figure = classes(photo, torch.tensor([0.0, 1.0]), ["cat", "dog"])
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
    for line, probability in zip(*top_classes(logits, names, count), strict=True):
        page.title(line)
        page.bar(probability)
    return page.figure()


def class_titles(explanation: Explanation, image: int = 0, names: Sequence[str] | None = None) -> list[str]:
    """Describe each map of one image in a line: the class, its probability (softmax) and its raw score.

    Args:
        explanation: of a batch.
        image: index of the image in the batch.
        names: the name of each class; None shows the numbers of the classes.

    Returns:
        One title, or K. Where the model has one output per image, and for a callable target, there is only the score.
        A map that is not valid is marked as empty.

    Raises:
        ValueError: fewer names than classes.

    Example:
        >>> import torch
        >>> from gradcam_fast import Explanation
        >>> one = torch.ones(1)
        >>> explanation = Explanation(
        ...     torch.rand(1, 4, 4), torch.tensor([[0.0, 1.0]]), torch.tensor([1]), one, one, one, one > 0, "layer4")
        >>> class_titles(explanation, names=["cat", "dog"])
        ['dog (1), 73.1 %, score 1']
    """
    scores, valid = (tensor[image].reshape(-1).tolist() for tensor in (explanation.score, explanation.valid))
    logits = explanation.logits[image].flatten() if explanation.target is not None else None
    if logits is not None and names is not None and len(names) < len(logits) != 1:
        raise ValueError(f"len(names) is {len(names)} for {len(logits)} classes; give one name per class")
    titles = []
    for k, (score, is_valid) in enumerate(zip(scores, valid, strict=True)):
        if logits is None or len(logits) == 1:
            title = f"score {score:.4g}" if len(scores) == 1 else f"target {k}, score {score:.4g}"
        else:
            assert explanation.target is not None
            index = explanation.target[image].reshape(-1).tolist()[k]
            title = f"{_named(index, names)}, {_percent(logits.float().softmax(0)[index])}, score {score:.4g}"
        titles.append(title if is_valid else f"{title} (empty map)")
    return titles


def top_classes(logits: Tensor, names: Sequence[str] | None = None, count: int = 5) -> tuple[list[str], list[float]]:
    """The most probable classes of one image: a line with probability (softmax), name and number, and the probability.

    Args:
        logits: (N,).
        names: the name of each class, or None.
        count: how many classes; at most N are returned.

    Example:
        >>> import torch
        >>> top_classes(torch.tensor([0.0, 1.0]), ["cat", "dog"])[0]
        ['73.1 %  dog (1)', '26.9 %  cat (0)']
    """
    top = logits.detach().float().softmax(0).topk(min(count, len(logits)))
    lines = [
        f"{_percent(probability)}  {_named(index, names)}"
        for probability, index in zip(top.values, top.indices.tolist(), strict=True)
    ]
    return lines, top.values.tolist()


def _named(index: int, names: Sequence[str] | None) -> str:
    return f"class {index}" if names is None else f"{names[index]} ({index})"


def _percent(probability: Tensor) -> str:
    return f"{100 * float(probability):.1f} %"


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
