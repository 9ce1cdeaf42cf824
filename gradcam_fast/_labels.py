"""What an explainer knows of its model's outputs: what they are, and the names of the classes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from .class_names import class_names, names_of_model
from .probabilities import check_rule, known_rule

if TYPE_CHECKING:
    from .explanation import Explanation
    from .probabilities import Rule

__all__ = ["Labels"]


class Labels:
    """Names of classes and the rule of their probabilities, for every explanation of a model.

    Args:
        model: the module that runs.
        names: whatever `class_names` takes; None takes those that the model has.
        rule: what is told of its outputs.

    Attributes:
        names: the name of each class, or None.
    """

    def __init__(self, model: torch.nn.Module, names: Any, rule: Rule) -> None:
        self._model, self._told = model, check_rule(rule)
        self._names_are_told = names is not None
        self._known: dict[int, str | None] = {}
        self.names = class_names(names) if names is not None else _complete(names_of_model(model))

    def __str__(self) -> str:
        """A part of the explainer's words."""
        return f", {len(self.names)} class names" if self.names else ""

    def added_to(self, explanation: Explanation, target: Any, sides: tuple[int, ...]) -> Explanation:
        """The explanation with names and rule; of a callable target, with what it is about.

        Args:
            target: as the explainer was called with it.
            sides: of the input, in pixels.

        Raises:
            ValueError: another number of names was given than the model has outputs.
        """
        logits = explanation.logits
        if explanation.target is None or not isinstance(logits, torch.Tensor):
            if not hasattr(target, "subject"):
                return explanation
            from .targets.subject import subject_of  # loaded by the target

            subject = subject_of(target, len(explanation.heatmap), sides)
            return replace(explanation, subject=subject, names=self.names)
        outputs = logits.shape[1] if logits.dim() > 1 else 1
        if self._names_are_told and self.names and len(self.names) != outputs > 1:
            raise ValueError(f"names has {len(self.names)} names for {outputs} classes; give one name per class")
        names = self.names if self.names and len(self.names) == outputs else None
        return replace(explanation, probability_rule=self.rule(outputs), names=names)

    def rule(self, outputs: int) -> str | None:
        """What a number of outputs per image are: a rule for `probabilities_of`."""
        if self._told != "auto":
            return self._told
        if outputs not in self._known:
            self._known[outputs] = known_rule(self._model, outputs, self.names)
        return self._known[outputs]


def _complete(names: Any) -> tuple[str, ...] | None:
    """The names of a model, or None where they do not name every class."""
    try:
        return class_names(names) if names else None
    except (TypeError, ValueError):
        return None
