"""Ready targets: what to ask of a model that does more than classify, one small function per task.

Each returns a callable for ``target=``, which turns what the model returns into scores (B,) or (B,K) on the device
where it lies. Knows nothing of layers, gradients or maps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from .arguments import as_asked, as_tensor, check_indices, columns, cosines, floating, kind, mean_over, rows
from .boxes import as_references, matching_scores

if TYPE_CHECKING:
    from torch import Tensor

    from .arguments import Indices

    Target = Callable[[Any], Tensor]

__all__ = ["detection", "probability", "regression", "segmentation", "similarity"]


def segmentation(category: Indices, mask: Any = None) -> Target:
    """How strongly a class is seen in a part of the image: the mean of its logits over a mask.

    Seg-Grad-CAM (Vinogradova et al., AAAI 2020) with the mean for the sum: the same heatmap, and a score in units of a
    logit. The mask may have another resolution than the logits: each position counts by the share of the pixels it
    covers that are in the mask, so that thin objects are not lost. Of an empty mask the score is 0, the map not valid.
    Right before the logits every mask has the same map; the layer found is one where it makes a difference.

    Args:
        category: a class, or K of them for (B,K) scores; 0 where there is one channel, such as depth.
        mask: booleans (H,W) for every image, (B,H,W), or (B,K,H,W); None = everywhere. A volume has three sides.

    Raises:
        TypeError, ValueError: no class index, no booleans; with the output, no (B,C,h,w) logits that both fit.

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
        raise TypeError(f"mask is {kind(region)}; give {expected}")

    def score(output: Any) -> Tensor:
        logits = floating(output)
        if logits.dim() < 3:
            raise ValueError(f"segmentation got {kind(logits)}; expected (B,C,h,w); pick the logits with output=...")
        chosen = columns("category", logits, category)
        return as_asked(category, chosen.flatten(2).mean(2) if region is None else mean_over(region, chosen))

    return score


def detection(boxes: Any, labels: Any, *, min_iou: float = 0.5) -> Target:
    """Why a detector saw these objects: for each box the score of the prediction of its label that overlaps it most.

    The overlap (intersection over union) chooses, and is not differentiated; weighing the score with it would only
    scale the map. Where no prediction of the label reaches ``min_iou`` the score is 0 and the map not valid. The
    scores are probabilities; :func:`probability` says what that means.

    torchvision's detectors other than SSD pad the resized images, right and below, to sides divisible by 32. A layer's
    map covers the padding too: unless the resized images have such sides, the heatmap is shrunk to the left and top.

    Args:
        boxes: (K,4) as x1, y1, x2, y2 in pixels for a batch of one, or (K_b,4) for each image; the model's own
            predictions, or any others. An image of fewer boxes than another has scores of 0 for those it lacks.
        labels: integers (K,), or (K_b,) for each image.
        min_iou: in (0,1]; 0.5 is what PASCAL VOC counts as found.

    Returns:
        callable from one dict of boxes, labels and scores per image, as torchvision's detectors return in eval mode,
        to scores (B,K). Bring what others return into this form with ``output=``.

    Raises:
        TypeError, ValueError: no boxes, or not as many labels; with the output, another form or number of images.

    Example:
        >>> import torch
        >>> from gradcam_fast import targets
        >>> found = {"boxes": torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]]),
        ...          "labels": torch.tensor([1, 1]), "scores": torch.tensor([0.9, 0.6])}
        >>> targets.detection([[21, 21, 30, 30], [50, 50, 60, 60]], [1, 1])([found])
        tensor([[0.6000, 0.0000]])
    """
    references = as_references(boxes, labels)
    if not 0 < min_iou <= 1:
        raise ValueError(f"min_iou={min_iou!r} is not in (0,1]; give the least overlap that counts, such as 0.5")

    def score(output: Any) -> Tensor:
        return matching_scores(output, references, min_iou)

    return score


def similarity(embedding: Any) -> Target:
    """What makes an image similar to a reference: the cosine of the angle between their embeddings, in [-1,1].

    The length of the image's own embedding is held constant. Where global average pooling makes the embedding, the
    map is then the decomposition of Stylianou et al. (Visualizing Deep Similarity Networks, WACV 2019): before ReLU
    and upsampling its positions add up to the score. With the length differentiated as well the gradient would vanish
    where it matters most, and an image just like its reference get a map of rounding errors.

    Args:
        embedding: floating (D,) for every image; (K,D), K for every image; or (B,K,D), K for each.

    Returns:
        callable from embeddings (B,D) to scores (B,), or (B,K) for K references.

    Raises:
        TypeError, ValueError: not floating or of another shape; with the output, another D or B.

    Example:
        >>> import torch
        >>> from gradcam_fast import targets
        >>> targets.similarity([3.0, 4.0])(torch.tensor([[6.0, 8.0], [4.0, -3.0]]))
        tensor([1., 0.])
    """
    expected = "floating values (D,), (K,D) or (B,K,D)"
    references = as_tensor("embedding", embedding, expected)
    if not references.is_floating_point() or not 1 <= references.dim() <= 3 or 0 in references.shape:
        raise TypeError(f"embedding is {kind(references)}; give {expected}")

    def score(output: Any) -> Tensor:
        return cosines(rows(output), references)

    return score


def regression(index: Indices | None = None) -> Target:
    """What raises a predicted number: the output itself. What lowers it is where the map is negative (``relu=False``).

    Args:
        index: which output, or K of them for (B,K) scores; None = the only one.

    Raises:
        TypeError, ValueError: no index; with the output, out of range, none for several outputs, not (B,N).

    Example:
        >>> import torch
        >>> from gradcam_fast import targets
        >>> targets.regression(index=[2, 0])(torch.tensor([[10.0, 20.0, 30.0]]))
        tensor([[30., 10.]])
    """
    asked = 0 if index is None else index
    check_indices("index", asked)

    def score(output: Any) -> Tensor:
        numbers = rows(output)
        if index is None and numbers.shape[1] != 1:
            raise ValueError(f"the model returned {numbers.shape[1]} numbers per image; say which with index=...")
        return as_asked(asked, columns("index", numbers, asked))

    return score


def probability(category: Indices) -> Target:
    """What speaks for a class rather than for the others: the softmax of its logit, in [0,1].

    Its gradient is p_c (dz_c - sum_j p_j dz_j) with logits z: evidence for the class, less that for all classes in
    proportion to their probability. A logit's map shows the evidence for the class, also where it speaks for others
    as much. The heatmap is that of log p_c too, the cross-entropy loss reversed. As p_c nears 1 the gradient vanishes:
    of a class that the model is sure of, the map is rounding errors, or not valid.

    A temperature divides the logits, which leaves their heatmaps as they are and changes those of probabilities. Label
    smoothing belongs to the loss: it has shaped the weights and asks for no target of its own. A model that ends in a
    softmax returns probabilities already, and ``target=category`` explains them; its logits cannot be had from those.

    Args:
        category: a class, or K of them for (B,K) scores.

    Raises:
        TypeError, ValueError: no class index; with the output, out of range, not (B,N), or N = 1.

    Example:
        >>> import torch
        >>> from gradcam_fast import targets
        >>> targets.probability(1)(torch.tensor([[0.0, 0.0], [5.0, -100.0]]))
        tensor([0.5000, 0.0000])
    """
    check_indices("category", category)

    def score(output: Any) -> Tensor:
        logits = rows(output)
        if logits.shape[1] == 1:
            raise ValueError("the model returned one logit per image, whose sigmoid has the same heatmap; explain that")
        return as_asked(category, columns("category", logits.softmax(1), category))

    return score
