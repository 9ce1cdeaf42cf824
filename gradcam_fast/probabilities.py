"""From a model's outputs to probabilities: softmax, sigmoid, already given, or not known.

Figures, tables and the command line ask here and nowhere else. A wrong percentage looks as trustworthy as a right one,
so a percentage is shown only where it is sure what the outputs are:

- told: ``probabilities="softmax"``, ``"sigmoid"``, ``"given"``, or None for no percentages;
- a row of values in [0,1] that add up to 1 holds probabilities already;
- a model with ``config.problem_type`` (transformers) says whether its classes exclude each other;
- a model whose last module is a Sigmoid or Softmax returns probabilities;
- an ImageNet classifier of torchvision or timm, or one whose classes have ImageNet's names, ends in logits for softmax.

Other logits may be of one class in N, of N labels that are independent of each other, or of no classes at all. Nothing
in the values tells which, so their probability is NaN, and the score alone is shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "RULES", "Rule", "check_rule", "confidence", "known_rule", "percent", "probabilities_of", "rule_by_names",
    "score_text",
]  # fmt: skip

Rule: TypeAlias = Literal["auto", "softmax", "sigmoid", "given"] | None
"""What is told of a model's outputs."""

RULES = ("auto", "softmax", "sigmoid", "given", None)
# A classifier whose outputs are logits unless their values say that they are probabilities: what `known_rule` returns
# where softmax is known, but was not told.
CLASSIFIER = "classifier"

# Classes of ImageNet-1k, and of the parts of ImageNet-21k that published weights have.
IMAGENET_SIZES = frozenset({1000, 11221, 11821, 21841, 21843})


def check_rule(rule: Any) -> Any:
    """Return ``rule`` if it can be told of a model's outputs.

    Raises:
        ValueError: it is none of `RULES`.
    """
    if rule not in RULES:
        raise ValueError(
            f"probabilities={rule!r} is unknown; choose softmax (one class in N), sigmoid (independent labels), given "
            "(the model returns probabilities), auto, or None for scores only"
        )
    return rule


@torch.no_grad()
def probabilities_of(logits: Tensor, rule: str | None = "auto") -> Tensor:
    """The probability of every output, NaN where it is not known.

    The rule holds for each row by itself, so that a row's result does not depend on its batch; the host does not wait
    for a device.

    Args:
        logits: (B,N) floating, as the model returned them.
        rule: one of `RULES`, or what `known_rule` returned.

    Returns:
        (B,N) float32 on the same device, in [0,1] or NaN.

    Example:
        >>> import torch
        >>> probabilities_of(torch.tensor([[0.25, 0.75], [2.0, -1.0]]))
        tensor([[0.2500, 0.7500],
                [   nan,    nan]])
        >>> probabilities_of(torch.tensor([[0.0, 0.0]]), "softmax")
        tensor([[0.5000, 0.5000]])
    """
    # Halves of many classes add up to 1 only roughly.
    slack = 1e-3 if logits.dtype in (torch.float32, torch.float64) else 1e-2
    logits = logits.detach().float()
    unknown = torch.full_like(logits, torch.nan)
    if rule == "sigmoid":
        return logits.sigmoid()
    if rule == "softmax":
        # The softmax of one output is 1 whatever the image.
        return logits.softmax(1) if logits.shape[1] > 1 else unknown
    if rule is None:
        return unknown
    in_range = ((logits >= -slack) & (logits <= 1 + slack)).all(1, keepdim=True)
    if rule == "given":
        return torch.where(in_range, logits.clamp(0, 1), unknown)
    given = in_range & ((logits.sum(1, keepdim=True) - 1).abs() <= slack) & (logits.shape[1] > 1)
    otherwise = logits.softmax(1) if rule == CLASSIFIER and logits.shape[1] > 1 else unknown
    return torch.where(given, logits.clamp(0, 1), otherwise)


def known_rule(model: nn.Module, outputs: int, names: Sequence[str] | Mapping[int, str] | None = None) -> str | None:
    """The rule for ``probabilities="auto"``, from what is known of a model.

    Args:
        model: the model, or the module inside its wrappers.
        outputs: how many outputs it has per image.
        names: the names of its classes, if they are known.

    Returns:
        A rule for `probabilities_of`; ``"auto"`` where only the values can tell.

    Example:
        >>> import torch
        >>> known_rule(torch.nn.Sequential(torch.nn.Linear(8, 3), torch.nn.Sigmoid()), 3)
        'given'
        >>> known_rule(torch.nn.Linear(8, 3), 3)
        'auto'
    """
    chain = _last_modules(model)
    for module in chain:
        problem = getattr(getattr(module, "config", None), "problem_type", None)
        if problem == "multi_label_classification":
            return "sigmoid"
        if problem == "regression":
            return None
        if problem == "single_label_classification":
            return CLASSIFIER if outputs > 1 else "auto"
    if isinstance(chain[-1], (torch.nn.Sigmoid, torch.nn.Softmax)):
        # It may be registered last and run earlier: values outside of [0,1] then remain without a probability.
        return "given"
    if outputs > 1 and (
        _are_imagenet_names(names)
        if names is not None and len(names) == outputs == 1000
        else any(_is_classifier(module, outputs) for module in chain)
    ):
        return CLASSIFIER
    return "auto"


def rule_by_names(rule: str | None, names: Sequence[str] | Mapping[int, str] | None) -> str | None:
    """The rule, but for ``"auto"`` where the names are those of ImageNet's 1000 classes.

    Example:
        >>> rule_by_names("auto", ["cat", "dog"]), rule_by_names("sigmoid", None)
        ('auto', 'sigmoid')
    """
    is_imagenet = rule == "auto" and names is not None and len(names) == 1000 and _are_imagenet_names(names)
    return CLASSIFIER if is_imagenet else rule


def _last_modules(model: nn.Module) -> list[nn.Module]:
    """The model, its last child, the last child of that ...: a wrapper often holds the network it wraps last."""
    chain = [model]
    while children := list(chain[-1].children()):
        chain.append(children[-1])
    return chain


def _is_classifier(module: nn.Module, outputs: int) -> bool:
    """Whether a network is known to be trained with one class per image."""
    labels = getattr(getattr(module, "config", None), "num_labels", None)
    if labels == outputs and type(module).__name__.endswith("ForImageClassification"):
        return True  # without a problem_type transformers itself takes the softmax
    if outputs not in IMAGENET_SIZES:
        return False
    config = getattr(module, "pretrained_cfg", None)  # timm
    if isinstance(config, Mapping):
        return config.get("num_classes") == outputs
    place = type(module).__module__
    other_tasks = tuple(f"torchvision.models.{task}" for task in ("detection", "segmentation", "optical_flow"))
    return place.startswith("torchvision.models.") and not place.startswith(other_tasks)


def _are_imagenet_names(names: Sequence[str] | Mapping[int, str]) -> bool:
    # First and last of the list that all networks of ImageNet share; some lists name synonyms too.
    return str(names[0]).startswith("tench") and str(names[999]).startswith(("toilet tissue", "toilet paper"))


def percent(probability: float) -> str:
    """A probability as text.

    Example:
        >>> percent(0.4631)
        '46.3 %'
    """
    return f"{100 * probability:.1f} %"


def score_text(score: float) -> str:
    """A score as text, with four significant digits.

    Example:
        >>> score_text(3.14159), score_text(2.0)
        ('score 3.142', 'score 2')
    """
    return f"score {score:.4g}"


def confidence(probability: float, score: float) -> str:
    """How sure a model is, as text: the probability, or the score where the probability is NaN.

    Example:
        >>> confidence(0.25, 3.0), confidence(float("nan"), 3.0)
        ('25.0 %', 'score 3')
    """
    return score_text(score) if math.isnan(probability) else percent(probability)
