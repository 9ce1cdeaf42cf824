"""From an explanation to the words beside its maps: the names of classes, their probabilities and raw scores.

Knows nothing of figures or colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ...explanation import Explanation

__all__ = ["class_titles", "most_probable"]


def class_titles(explanation: Explanation, image: int = 0, names: Sequence[str] | None = None) -> list[str]:
    """What was explained of one image, a line for each of its maps: class, probability (softmax), raw score.

    Args:
        explanation: of a batch.
        image: its place in the batch.
        names: the name of each class; None leaves their numbers.

    Returns:
        One title, or K. The output of a model with one output per image and the scores of a callable target have
        neither name nor probability. A map that shows nothing is said to be empty.

    Raises:
        ValueError: fewer names than classes.

    Example:
        >>> import torch
        >>> from gradcam_fast import Explanation
        >>> one = torch.ones(1)
        >>> found = Explanation(
        ...     torch.rand(1, 4, 4), torch.tensor([[0.0, 1.0]]), torch.tensor([1]), one, one, one, one > 0, "layer4")
        >>> class_titles(found, names=["cat", "dog"])
        ['dog (1), 73.1 %, score 1']
    """
    scores, valid = (tensor[image].reshape(-1).tolist() for tensor in (explanation.score, explanation.valid))
    logits = explanation.logits[image].flatten() if explanation.target is not None else None
    if logits is not None and names is not None and len(names) < len(logits) != 1:
        raise ValueError(f"there are {len(names)} names for {len(logits)} classes; give one for each")
    titles = []
    for k, (score, shown) in enumerate(zip(scores, valid, strict=True)):
        if logits is None or len(logits) == 1:
            title = f"score {score:.4g}" if len(scores) == 1 else f"target {k}, score {score:.4g}"
        else:
            assert explanation.target is not None
            index = explanation.target[image].reshape(-1).tolist()[k]
            title = f"{_named(index, names)}, {_percent(logits.float().softmax(0)[index])}, score {score:.4g}"
        titles.append(title if shown else f"{title} (empty map)")
    return titles


def most_probable(logits: Tensor, names: Sequence[str] | None = None, count: int = 5) -> tuple[list[str], list[float]]:
    """The most probable classes of one image with their names, numbers and probabilities (softmax).

    Args:
        logits: (N,); names: the name of each, or None.

    Example:
        >>> import torch
        >>> most_probable(torch.tensor([0.0, 1.0]), ["cat", "dog"])[0]
        ['73.1 %  dog (1)', '26.9 %  cat (0)']
    """
    found = logits.detach().float().softmax(0).topk(min(count, len(logits)))
    lines = [
        f"{_percent(probability)}  {_named(index, names)}"
        for probability, index in zip(found.values, found.indices.tolist(), strict=True)
    ]
    return lines, found.values.tolist()


def _named(index: int, names: Sequence[str] | None) -> str:
    return f"class {index}" if names is None else f"{names[index]} ({index})"


def _percent(probability: Tensor) -> str:
    return f"{100 * float(probability):.1f} %"
