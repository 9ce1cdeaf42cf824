"""Ready targets for segmentation, detection, embeddings, regression, probabilities, yes or no, and rival classes.

Each function returns a callable for ``target=`` that turns the model's output into scores (B,) or (B,K) on its device;
but for ``named``, which turns names of classes into their indices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..class_names import named
from ..ops.arguments import check_choice, is_integer
from .boxes import as_boxes, matching_scores
from .dense_predictions import BOX_FORMATS, HEADS
from .outputs import as_rows, as_tensor, check_indices, cosines, describe, drop_single, floating_logits, mean_over, pick
from .rivals import mean_of_listed, mean_of_nearest
from .subject import about

if TYPE_CHECKING:
    from torch import Tensor

    from .outputs import Indices

    ScoreFunction = Callable[[Any], Tensor]

__all__ = ["binary", "detection", "finer", "named", "probability", "regression", "segmentation", "similarity"]


def segmentation(category: Indices, mask: Any = None) -> ScoreFunction:
    """Score a class of a segmentation model in a region of the image: the mean of its logits over a mask.

    Seg-Grad-CAM (Vinogradova et al., AAAI 2020) with the mean in place of the sum: the heatmap is the same,
    and the score has the scale of a logit. The mask may have another resolution than the logits: the weight of each
    position is the share of its pixels that are in the mask, so that thin objects count. An empty mask has the score 0
    and a heatmap that is not valid. Where only a 1x1 convolution follows, as behind the layer that ``layer=None`` finds
    in most networks, ``gradcam`` gives the same heatmap for every mask: to see what a mask depends on, name an earlier
    layer (``layer="backbone.layer4"``), or use ``method="layercam"``.

    Args:
        category: class index, or K of them for scores (B,K); 0 for a model with one channel, such as depth.
        mask: booleans (H,W) for every image, (B,H,W), or (B,K,H,W); None = the whole image. Volumes have three sides.

    Returns:
        A callable from logits (B,C,h,w), or an output that holds them, to scores (B,) or (B,K).

    Raises:
        TypeError, ValueError: no class index or no booleans; when called, logits of another shape or dtype, a class out
            of range, or a mask that does not fit.

    Example:
        >>> import torch
        >>> from gradcam_fast import targets
        >>> logits = torch.tensor([[[[0.0, 0.0], [0.0, 0.0]], [[1.0, 2.0], [3.0, 4.0]]]])
        >>> targets.segmentation(1, mask=[[True, False], [True, False]])({"out": logits})
        tensor([2.])
    """
    check_indices("category", category)
    expected = "booleans (H,W), (B,H,W) or (B,K,H,W), such as labels == 7"
    region = None if mask is None else as_tensor("mask", mask, expected)
    if region is not None and (region.dtype != torch.bool or 0 in region.shape):
        raise TypeError(f"mask is {describe(region)}; give {expected}")

    def score(output: Any) -> Tensor:
        logits = floating_logits(output)
        if logits.dim() < 3:
            raise ValueError(
                f"segmentation got {describe(logits)}; expected (B,C,h,w); pick the logits with output=..."
            )
        maps = pick("category", logits, category)
        return drop_single(category, maps.flatten(2).mean(2) if region is None else mean_over(region, maps))

    return about(score, classes=category, masks=region)


def detection(
    boxes: Any,
    labels: Any,
    *,
    min_iou: float = 0.5,
    head: str | None = None,
    classes: int | None = None,
    box_format: str | None = None,
) -> ScoreFunction:
    """Score objects of a detector: for each box, the score of the prediction of its label that overlaps it most.

    The overlap (intersection over union) only chooses the prediction and is not differentiated; a score weighted by it
    would have the same heatmap. Where no prediction of the label overlaps by ``min_iou``, the score is 0 and the
    heatmap not valid. The scores are probabilities: see :func:`probability` for what their heatmaps show.

    Two kinds of output are read. Detectors of torchvision return one dict of boxes, labels and scores per image in eval
    mode. YOLO heads return one tensor of all predictions before non-maximum suppression, alone or first in a tuple, in
    one of three forms:

    ========= ================ ========================================= =========================================
    ``head``  shape            columns                                   networks
    ========= ================ ========================================= =========================================
    "yolov8"  (B,4+classes,N)  cx, cy, w, h, score of each class         v5u, v8, v9, 11, 12; v10 and 26 where
                                                                         ``end2end`` is False
    "yolov5"  (B,N,5+classes)  cx, cy, w, h, objectness, score of each   v5, v6, v7, YOLOX
                               class; the two scores are multiplied
    "yolov10" (B,N,6)          x1, y1, x2, y2, score, label              v10 and 26 where ``end2end`` is True
    ========= ================ ========================================= =========================================

    In the first two every prediction has a score for every class, so the box that overlaps most is scored for the label
    asked. Heads of v10 and 26 with ``end2end`` detach what they read, so that only the layers of the head itself can be
    explained; set ``end2end`` to False for others.

    torchvision's detectors other than SSD pad the resized images, right and below, to sides divisible by 32. A layer's
    map covers the padding too: unless the resized images have such sides, the heatmap is shrunk to the left and top.

    Args:
        boxes: (K,4) as x1, y1, x2, y2 in pixels for a batch of one, or (K_b,4) for each image; the model's own
            predictions or any others. An image with fewer boxes than another has scores of 0 for those it lacks.
        labels: integers (K,), or (K_b,) for each image, in the numbering of the model: torchvision's class 0 is the
            background, a YOLO head's the first class.
        min_iou: in (0,1]; 0.5 is the overlap from which PASCAL VOC counts an object as detected.
        head: form of a tensor of predictions; None takes "yolov8" where there are more predictions than columns.
        classes: number of classes, where other columns stand behind theirs: mask coefficients, keypoints, angles.
        box_format: "cxcywh" or "xyxy", where the head's boxes are not those of the table.

    Returns:
        A callable from such an output to scores (B,K). Convert the outputs of other detectors with ``output=``.

    Raises:
        TypeError, ValueError: no boxes, or not one integer label for each; an unknown head; when called, another kind
            of output, another number of images, or a label that the output has no class for.

    Example:
        >>> import torch
        >>> from gradcam_fast import targets
        >>> prediction = {"boxes": torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]]),
        ...               "labels": torch.tensor([1, 1]), "scores": torch.tensor([0.9, 0.6])}
        >>> targets.detection([[21, 21, 30, 30], [50, 50, 60, 60]], [1, 1])([prediction])
        tensor([[0.6000, 0.0000]])
        >>> two_boxes = torch.tensor([[5.0, 25.0], [5.0, 25.0], [10.0, 10.0], [10.0, 10.0]])
        >>> of_three_classes = torch.tensor([[0.1, 0.7], [0.8, 0.2], [0.3, 0.4]])
        >>> targets.detection([[21, 21, 30, 30]], [2])(torch.cat([two_boxes, of_three_classes])[None])
        tensor([[0.4000]])
    """
    padded_boxes, padded_labels = as_boxes(boxes, labels)
    if not 0 < min_iou <= 1:
        raise ValueError(f"min_iou={min_iou!r} is not in (0,1]; give the least overlap that counts, such as 0.5")
    if head is not None:
        check_choice("head", head, tuple(HEADS))
    if box_format is not None:
        check_choice("box_format", box_format, BOX_FORMATS)
    if classes is not None:
        _check_count("classes", classes)

    highest_label = int(padded_labels.max()) if padded_labels.device.type == "cpu" else 0

    def score(output: Any) -> Tensor:
        return matching_scores(
            output,
            padded_boxes,
            padded_labels,
            min_iou,
            highest_label=highest_label,
            head=head,
            box_format=box_format,
            classes=classes,
        )

    return about(score, classes=padded_labels, objects=padded_boxes)


def _check_count(name: str, count: Any) -> None:
    if not is_integer(count):
        raise TypeError(f"{name}={count!r} is a {type(count).__name__}; give an integer of at least 1")
    if count < 1:
        raise ValueError(f"{name}={count} is below 1; give an integer of at least 1")


def similarity(embedding: Any) -> ScoreFunction:
    """Score an image by its similarity to a reference: the cosine of the angle between their embeddings, in [-1,1].

    The length of the image's embedding is not differentiated. Where global average pooling makes the embedding, the
    map is then the decomposition of Stylianou et al. (Visualizing Deep Similarity Networks, WACV 2019): before ReLU
    and upsampling its positions add up to the score. If the length were differentiated too, the gradient would vanish
    for images equal to their reference, and their heatmap would be rounding errors.

    Args:
        embedding: floating (D,), the reference of every image; (K,D), K references of every image; or (B,K,D), K
            references for each image.

    Returns:
        A callable from embeddings (B,D) to scores (B,), or (B,K) for K references.

    Raises:
        TypeError, ValueError: not floating or of another shape; when called, another D or B.

    Example:
        >>> import torch
        >>> from gradcam_fast import targets
        >>> targets.similarity([3.0, 4.0])(torch.tensor([[6.0, 8.0], [4.0, -3.0]]))
        tensor([1., 0.])
    """
    expected = "floating values (D,), (K,D) or (B,K,D)"
    references = as_tensor("embedding", embedding, expected)
    if not references.is_floating_point() or not 1 <= references.dim() <= 3 or 0 in references.shape:
        raise TypeError(f"embedding is {describe(references)}; give {expected}")

    def score(output: Any) -> Tensor:
        return cosines(as_rows(output), references)

    return score


def regression(index: Indices | None = None) -> ScoreFunction:
    """Score an image by a predicted number: the output itself.

    The heatmap shows what raises the number; with ``relu=False`` it is negative where the image lowers it.

    Args:
        index: index of the output, or K of them for scores (B,K); None for the only output.

    Returns:
        A callable from outputs (B,N) to scores (B,) or (B,K).

    Raises:
        TypeError, ValueError: no index; when called, not (B,N), an index out of range, or None for several outputs.

    Example:
        >>> import torch
        >>> from gradcam_fast import targets
        >>> targets.regression(index=[2, 0])(torch.tensor([[10.0, 20.0, 30.0]]))
        tensor([[30., 10.]])
    """
    indices = 0 if index is None else index
    check_indices("index", indices)

    def score(output: Any) -> Tensor:
        numbers = as_rows(output)
        if index is None and numbers.shape[1] != 1:
            raise ValueError(f"the model returned {numbers.shape[1]} numbers per image; choose with index=...")
        return drop_single(indices, pick("index", numbers, indices))

    return score


def probability(category: Indices) -> ScoreFunction:
    """Score a class by its probability, the softmax of the logits, in [0,1].

    The heatmap shows what speaks for the class more than for the others: the gradient is p_c (dz_c - sum_j p_j dz_j)
    with logits z and probabilities p, so that of the class's logit less the mean of all, weighted by p. The heatmap of
    a logit also shows places that speak for other classes as much. The heatmap of log p_c, the negative cross-entropy
    loss, is the same. As p_c nears 1 the gradient vanishes: for a class that the model is sure of, the heatmap is
    rounding errors, or not valid.

    A temperature divides the logits: it changes the heatmaps of probabilities, not those of logits. Label smoothing
    belongs to the loss and needs no target of its own. Where the model ends in a softmax, use ``target=category``: its
    output is the probability.

    Args:
        category: class index, or K of them for scores (B,K).

    Returns:
        A callable from logits (B,N), N > 1, to scores (B,) or (B,K).

    Raises:
        TypeError, ValueError: no class index; when called, not (B,N), N = 1, or a class out of range.

    Example:
        >>> import torch
        >>> from gradcam_fast import targets
        >>> targets.probability(1)(torch.tensor([[0.0, 0.0], [5.0, -100.0]]))
        tensor([0.5000, 0.0000])
    """
    check_indices("category", category)

    def score(output: Any) -> Tensor:
        logits = as_rows(output)
        if logits.shape[1] == 1:
            raise ValueError(
                "the model returned one logit per image, whose softmax is always 1; use target=None, which explains "
                "the logit: the heatmap of its sigmoid is the same; or targets.binary()"
            )
        return drop_single(category, pick("category", logits.softmax(1), category))

    return about(score, classes=category)


def binary(positive: bool | None = None, *, threshold: float = 0.0) -> ScoreFunction:
    """Score the answer, yes or no, of a model with one logit per image.

    The score of yes is the logit, that of no is the negated logit: a sigmoid is a softmax over the logit and 0, and the
    difference to the other answer is what decides. ``target=None`` always explains yes, and where the model says no the
    heatmap is then mostly empty.

    Args:
        positive: True explains yes, False no; None explains what the model says, which may differ between images.
        threshold: the model says yes from here; 0.5 for a model that ends in a sigmoid and returns probabilities.

    Returns:
        A callable from logits (B,), (B,1) or (B,1,1,1) to scores (B,).

    Raises:
        TypeError: ``positive`` is not True, False or None, or the threshold no number; when called, logits of no
            floating dtype.
        ValueError: when called, several logits per image.

    Example:
        >>> import torch
        >>> from gradcam_fast import targets
        >>> logits = torch.tensor([[2.0], [-3.0]])
        >>> targets.binary()(logits), targets.binary(positive=False)(logits)
        (tensor([2., 3.]), tensor([-2.,  3.]))
    """
    if positive is not None and not isinstance(positive, bool):
        raise TypeError(f"positive={positive!r} is a {type(positive).__name__}; give True, False, or None for either")
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)):
        raise TypeError(f"threshold={threshold!r} is a {type(threshold).__name__}; give a number such as 0.5")

    def score(output: Any) -> Tensor:
        logits = as_rows(output)
        if logits.shape[1] != 1:
            raise ValueError(
                f"the model returned {logits.shape[1]} logits per image, and binary explains the answer of one; give "
                "target=class, or the negated logit, target=lambda out: -out[:, 1], for what speaks against a class"
            )
        logit = logits[:, 0]
        if positive is None:
            return torch.where(logit >= threshold, logit, -logit)
        return logit if positive else -logit

    return score


def finer(
    category: Indices | None = None, rivals: Indices = 3, *, alpha: float = 0.6, weights: str = "mean"
) -> ScoreFunction:
    """Score what sets a class apart from its nearest rivals: its logit less a share of theirs.

    Finer-CAM (Zhang et al., CVPR 2025, arXiv 2501.11309): y_c - alpha sum_d w_d y_d with the logit y_c of the class and
    the logits y_d of its rivals. The paper weighs T rivals alike, w_d = 1/T. pytorch-grad-cam's ``FinerCAM`` has
    alpha=1 and weights="softmax": w_d = exp(y_d) / sum exp(y_e) over the rivals, which are differentiated, too. Nearest
    are the classes whose logits differ least from the class's own, above or below. As these differ from image to image,
    the layer found is one that all logits depend on.

    Args:
        category: class index, or K of them for scores (B,K); None for each image's highest logit.
        rivals: how many of the nearest classes are rivals, at most as many as there are; or a list of class indices, of
            which the predicted class itself is left out.
        alpha: how much the rivals count; 0 leaves the logit alone.
        weights: "mean" or "softmax".

    Returns:
        A callable from logits (B,N), N > 1, to scores (B,) or (B,K).

    Raises:
        TypeError, ValueError: no class index, no number of rivals, an alpha that is no number, unknown weights, a class
            that is its own rival; when called, not (B,N), N = 1, or a class out of range.

    Example:
        >>> import torch
        >>> from gradcam_fast import targets
        >>> logits = torch.tensor([[5.0, 4.0, 0.0, 2.0]])
        >>> targets.finer(0, rivals=2, alpha=1)(logits), targets.finer(rivals=[2], alpha=1)(logits)
        (tensor([2.]), tensor([5.]))
    """
    if category is not None:
        check_indices("category", category)
    if is_integer(rivals):
        _check_count("rivals", rivals)
    else:
        check_indices("rivals", rivals)
    listed = None if is_integer(rivals) else [int(rival) for rival in rivals]  # type: ignore[union-attr]
    chosen = category if isinstance(category, Sequence) else [] if category is None else [category]
    if listed and set(chosen) & set(listed):
        raise ValueError(f"rivals={rivals!r} holds the class {category!r} itself; give other classes")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise TypeError(f"alpha={alpha!r} is a {type(alpha).__name__}; give a number such as 0.6")
    check_choice("weights", weights, ("mean", "softmax"))
    by_softmax = weights == "softmax"

    def score(output: Any) -> Tensor:
        logits = as_rows(output)
        count = logits.shape[1]
        if count == 1:
            raise ValueError(
                "the model returned one logit per image, which has no rivals; use target=None, or targets.binary()"
            )
        own, places = logits.max(1, keepdim=True)
        if category is not None:
            own = pick("category", logits, category)
            places = torch.stack([torch.full_like(places[:, 0], int(index)) for index in chosen], 1)
        if listed is None:
            rival = mean_of_nearest(logits, own, places, min(int(rivals), count - 1), by_softmax=by_softmax)  # type: ignore[arg-type]
        else:
            rival = mean_of_listed(logits, places, listed, by_softmax=by_softmax)
        return drop_single(0 if category is None else category, own - alpha * rival)

    return about(score, classes=category, follows_prediction=category is None or listed is None)
