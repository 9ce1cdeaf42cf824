"""Figures of an explanation: photo, heatmap and overlay under the class's name, and the most probable classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isnan
from typing import TYPE_CHECKING, Any

import torch

from ...probabilities import confidence, percent, probabilities_of, rule_by_names, score_text
from ..colormaps import colorize, colormap_table, default_colormap, on_unit_scale
from ..overlay import overlay
from ..placement import boxes_of, place
from .marks import with_box, with_outline
from .page import Page
from .sizing import as_photo, background, check_covers, resize_photo, scaled, size_within

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from ...explanation import Explanation
    from ..placement import Box

__all__ = [
    "add_colour_bar", "as_photos", "class_titles", "classes", "explained", "marked_with", "panels", "top_classes",
]  # fmt: skip

HEADER = "photo", "heatmap", "overlay"
# The gray of a heatmap's panel where the network saw nothing.
UNSEEN = 235
# In pixels: the names of most classes fit on one line.
CLASS_NAME_WIDTH = 320


def panels(
    photo: Any,
    heatmap: Tensor,
    titles: Sequence[str],
    *,
    box: Any = None,
    colormap: str | None = None,
    alpha: float | Tensor = 0.5,
    signed: bool = False,
    edges: bool = False,
    stamp: str = "",
) -> Figure:
    """Draw photo, heatmap and overlay side by side, one row for each heatmap, each row under its title.

    The three panels have one size, of the photo's proportions and at most 384 x 512 pixels, and are drawn pixel for
    pixel: a place in the photo is at the same place in the heatmap and in the overlay.

    Args:
        photo: RGB (3,H,W) uint8, or a photo in another form that :class:`gradcam_fast.Preprocess` takes.
        heatmap: (K,h,w), floating in [0,1].
        titles: K titles.
        box: the part of the photo that the network saw, as in :func:`gradcam_fast.overlay`. None: the heatmap, whatever
            its own resolution, covers the whole photo and must have its proportions.
        colormap, alpha, signed, edges: as in :func:`gradcam_fast.overlay`; a tensor ``alpha`` has the heatmap's shape.
        stamp: words above everything in red, such as "random weights".

    Returns:
        A matplotlib figure, to be shown in a notebook or written by :func:`save`.

    Raises:
        TypeError, ValueError: shapes, dtypes or ranges that do not fit, an unknown colormap.
        ImportError: matplotlib or OpenCV is not installed.

    Example:
        >>> import torch
        >>> photo = torch.zeros(3, 192, 384, dtype=torch.uint8)
        >>> figure = panels(photo, torch.rand(1, 7, 14), ["a class, 50.0 %"])
        >>> [int(side) for side in figure.bbox.size]
        [1200, 303]
    """
    photo = as_photo(photo)
    place = _checked(photo, heatmap, titles, box, alpha)
    page = Page(3, size_within(photo)[1])
    page.stamp(stamp)
    page.captions(HEADER)
    colours = default_colormap(colormap, signed)
    _add_rows(page, photo, heatmap, titles, place, {}, colormap=colours, alpha=alpha, signed=signed, edges=edges)
    add_colour_bar(page, colours, signed)
    return page.figure()


def explained(
    photos: Any,
    explanation: Explanation,
    names: Sequence[str] | None = None,
    *,
    boxes: Any = None,
    colormap: str | None = None,
    alpha: float = 0.5,
    edges: bool = False,
    stamp: str = "",
) -> Figure:
    """Draw an explanation as :func:`panels` does: a row for each photo and class, with the class's name and scores.

    Where a ready target was explained, its objects are drawn as boxes, and its masks are outlined.

    Args:
        photos: the explained batch before preprocessing: a list of B photos of any sizes, in any form that
            :class:`gradcam_fast.Preprocess` takes, (B,3,H,W) uint8, or a single photo; None takes those that the
            explanation was made of.
        explanation: what :func:`gradcam_fast.explain` returned for the batch.
        names: the name of each class; None takes ``explanation.names``, or else shows the numbers of the classes.
        boxes: the parts of the photos that the network saw, as in :func:`gradcam_fast.overlay`; None takes
            ``explanation.boxes``, or else each map must have the proportions of its photo.
        colormap, alpha, edges, stamp: as in :func:`panels`.

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
    photos = as_photos(photos, explanation)
    if len(photos) != len(heatmap) or not len(heatmap) or heatmap.dim() not in (3, 4):
        raise ValueError(
            f"len(photos) is {len(photos)} but the heatmap has shape {tuple(heatmap.shape)}; expected B photos, at "
            "least one, and a heatmap (B,H,W) or (B,K,H,W)"
        )
    heatmaps = [maps.reshape(-1, *maps.shape[-2:]) for maps in heatmap]
    titles = [class_titles(explanation, image, names) for image in range(len(heatmaps))]
    found = boxes_of(explanation.boxes if boxes is None else boxes, [(p.shape[-2], p.shape[-1]) for p in photos])
    places = [_checked(*row, alpha) for row in zip(photos, heatmaps, titles, found, strict=True)]
    page = Page(3, max(size_within(photo)[1] for photo in photos))
    page.stamp(stamp)
    page.captions(HEADER)
    signed = explanation.signed
    colours = default_colormap(colormap, signed)
    for image, row in enumerate(zip(photos, heatmaps, titles, places, strict=True)):
        subject = {name: part[image] for name, part in (explanation.subject or {}).items()}
        _add_rows(page, *row, subject, colormap=colours, alpha=alpha, signed=signed, edges=edges)
    add_colour_bar(page, colours, signed)
    return page.figure()


def as_photos(photos: Any, explanation: Explanation) -> list[Tensor]:
    """The photos of an explanation as (3,H,W) uint8: those given, or those that it was made of.

    Raises:
        ValueError: None are given, and it was made of tensors.
    """
    if photos is None:
        if explanation.photos is None:
            raise ValueError(
                "the explanation was made of tensors, without photos to show; give photos, or explain photos with "
                "Explainer(model, preprocess=...)"
            )
        return list(explanation.photos)
    if isinstance(photos, (list, tuple)) or getattr(photos, "ndim", 3) == 4:
        return [as_photo(photo) for photo in photos]
    return [as_photo(photos)]


def classes(
    photo: Any,
    logits: Tensor,
    names: Sequence[str] | None = None,
    *,
    count: int = 5,
    probabilities: str | None = "auto",
) -> Figure:
    """Draw a photo and below it the classes with the highest outputs, each with a bar as long as its probability.

    Where the probabilities are not known, the lines have the scores and no bars.

    Args:
        photo: RGB (3,H,W) uint8, or a photo in another form that :class:`gradcam_fast.Preprocess` takes.
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
    photo = as_photo(photo)
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
    told = replace(explanation, probability_rule=rule_by_names(explanation.probability_rule, names))
    every = told.probabilities
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
        elif explanation.subject is not None and "classes" in explanation.subject:
            parts.insert(0, _named(int(explanation.subject["classes"][image, k]), names))
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
    shares = probabilities_of(logits[None], rule_by_names(probabilities, names))[0][top.indices].tolist()
    lines = [
        f"{confidence(share, score)}  {_named(index, names)}"
        for share, score, index in zip(shares, top.values.tolist(), top.indices.tolist(), strict=True)
    ]
    return lines, shares


def _named(index: int, names: Sequence[str] | None) -> str:
    return f"class {index}" if names is None or index >= len(names) else f"{names[index]} ({index})"


def _checked(photo: Tensor, heatmap: Tensor, titles: Sequence[str], box: Any, alpha: float | Tensor) -> Box | None:
    """The box of the heatmaps, after a look at all that is drawn with them."""
    if heatmap.dim() != 3 or len(heatmap) != len(titles) or not titles:
        raise ValueError(
            f"heatmap has shape {tuple(heatmap.shape)} and len(titles) is {len(titles)}; "
            "expected (K,h,w) and K titles, at least one"
        )
    if isinstance(alpha, torch.Tensor) and alpha.shape != heatmap.shape:
        raise ValueError(f"alpha has shape {tuple(alpha.shape)}; expected the heatmap's {tuple(heatmap.shape)}")
    place = boxes_of(box, [(photo.shape[-2], photo.shape[-1])])[0]
    if place is None:
        check_covers(heatmap, photo)
    return place


def _add_rows(
    page: Page,
    photo: Tensor,
    heatmap: Tensor,
    titles: Sequence[str],
    box: Box | None,
    subject: Mapping[str, Tensor],
    *,
    colormap: str,
    alpha: float | Tensor,
    signed: bool,
    edges: bool,
) -> None:
    size = size_within(photo)
    place_of_maps = scaled(box, photo, size)
    heatmap = on_unit_scale(heatmap) if signed else heatmap
    heatmap, inside = place(heatmap.detach().float().cpu(), size, place_of_maps)
    behind = background(photo, size, edges=edges)[None]
    photo = resize_photo(photo, size)
    weight = place(alpha.float().cpu(), size, place_of_maps)[0] if isinstance(alpha, torch.Tensor) else alpha
    blends = overlay(behind, heatmap[None], colormap=colormap, alpha=(torch.ones_like(heatmap) * weight * inside)[None])
    for k, (title, colors, blend) in enumerate(zip(titles, colorize(heatmap, colormap), blends[0], strict=True)):
        page.title(title)
        marked = [marked_with(picture, subject, k, place_of_maps) for picture in (photo, blend)]
        page.pictures((marked[0], torch.where(inside, colors, UNSEEN), marked[1]))


def marked_with(picture: Tensor, subject: Mapping[str, Tensor], k: int, box: Box) -> Tensor:
    """A picture with the object or the outline of the region that its k-th map is about, if there is one.

    Args:
        picture: (3,h,w) uint8.
        subject: as ``Explanation.subject``, of one image.
        box: where in the picture the network's input lies.
    """
    left, top, right, bottom = box
    if "objects" in subject:
        x1, y1, x2, y2 = subject["objects"][k].tolist()
        if x2 > x1 and y2 > y1:  # images with fewer objects than others have empty ones
            width, height = right - left, bottom - top
            edges = left + x1 * width, top + y1 * height, left + x2 * width, top + y2 * height
            picture = with_box(picture, edges)
    if "masks" in subject:
        masks = subject["masks"]
        size = picture.shape[-2], picture.shape[-1]
        shown, inside = place(masks[min(k, len(masks) - 1)].float(), size, box)
        picture = with_outline(picture, (shown > 0.5) & inside)
    return picture


def add_colour_bar(page: Page, colormap: str, signed: bool) -> None:
    """Add a bar of the colours, from 0 to 1, or for signed maps from -1 to 1."""
    page.colour_bar(colormap_table(colormap, torch.device("cpu"))[::4], ("-1", "0", "1") if signed else ("0", "1"))
