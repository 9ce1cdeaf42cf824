"""Ready targets for segmentation, detection, embeddings, regression and probabilities.

Each function returns a callable for ``target=`` that turns the model's output into scores (B,) or (B,K) on its device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from .boxes import as_boxes, matching_scores
from .outputs import as_rows, as_tensor, check_indices, cosines, describe, drop_single, floating_logits, mean_over, pick

if TYPE_CHECKING:
    from torch import Tensor

    from .outputs import Indices

    ScoreFunction = Callable[[Any], Tensor]

__all__ = ["detection", "probability", "regression", "segmentation", "similarity"]


def segmentation(category: Indices, mask: Any = None) -> ScoreFunction:
    """Score a class of a segmentation model in a region of the image: the mean of its logits over a mask.

    Seg-Grad-CAM (Vinogradova et al., AAAI 2020) with the mean in place of the sum: the heatmap is the same,
    and the score has the scale of a logit. The mask may have another resolution than the logits: the weight of each
    position is the share of its pixels that are in the mask, so that thin objects count. An empty mask has the score 0
    and a heatmap that is not valid. At the last layer before the logits every mask gives the same heatmap, so
    ``layer=None`` finds a layer where the mask makes a difference.

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

    return score


def detection(boxes: Any, labels: Any, *, min_iou: float = 0.5) -> ScoreFunction:
    """Score objects of a detector: for each box, the score of the prediction of its label that overlaps it most.

    The overlap (intersection over union) only chooses the prediction and is not differentiated; a score weighted by it
    would have the same heatmap. Where no prediction of the label overlaps by ``min_iou``, the score is 0 and the
    heatmap not valid. The scores are probabilities: see :func:`probability` for what their heatmaps show.

    torchvision's detectors other than SSD pad the resized images, right and below, to sides divisible by 32. A layer's
    map covers the padding too: unless the resized images have such sides, the heatmap is shrunk to the left and top.

    Args:
        boxes: (K,4) as x1, y1, x2, y2 in pixels for a batch of one, or (K_b,4) for each image; the model's own
            predictions or any others. An image with fewer boxes than another has scores of 0 for those it lacks.
        labels: integers (K,), or (K_b,) for each image.
        min_iou: in (0,1]; 0.5 is the overlap from which PASCAL VOC counts an object as detected.

    Returns:
        A callable from one dict of boxes, labels and scores per image, as torchvision's detectors return in eval mode,
        to scores (B,K). Convert the outputs of other detectors with ``output=``.

    Raises:
        TypeError, ValueError: no boxes, or not one integer label for each; when called, another kind of output or
            another number of images.

    Example:
        >>> import torch
        >>> from gradcam_fast import targets
        >>> prediction = {"boxes": torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]]),
        ...               "labels": torch.tensor([1, 1]), "scores": torch.tensor([0.9, 0.6])}
        >>> targets.detection([[21, 21, 30, 30], [50, 50, 60, 60]], [1, 1])([prediction])
        tensor([[0.6000, 0.0000]])
    """
    padded_boxes, padded_labels = as_boxes(boxes, labels)
    if not 0 < min_iou <= 1:
        raise ValueError(f"min_iou={min_iou!r} is not in (0,1]; give the least overlap that counts, such as 0.5")

    def score(output: Any) -> Tensor:
        return matching_scores(output, padded_boxes, padded_labels, min_iou)

    return score


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
                "the logit: the heatmap of its sigmoid is the same"
            )
        return drop_single(category, pick("category", logits.softmax(1), category))

    return score
