"""From a capture to what the op makes heatmaps of, by any method and smoothing."""

from __future__ import annotations

from dataclasses import replace

from . import method_module
from .method import Evidence, Method, MethodInput

__all__ = ["evidence_of", "method_of"]


def method_of(name: str) -> Method | None:
    """The method of this name; None for one of the op's."""
    module = method_module(name)
    return None if module is None else module.METHODS[name]


def evidence_of(given: MethodInput) -> Evidence:
    """What the op makes the heatmaps of a call of."""
    choices = given.choices
    evidence = Evidence(given.capture.activations, given.capture.gradients, choices.method)
    if "noise" in choices.smoothings:
        from .noise import smoothed_gradients

        evidence = smoothed_gradients(given)
        capture = replace(given.capture, activations=evidence.activations, gradients=evidence.gradients)
        given = given._replace(capture=capture)
    method = method_of(choices.method)
    if method is not None:
        return method.evidence(given)
    if "eigen" in choices.smoothings:
        from .eigen import smoothed

        return smoothed(given, evidence.method)
    return evidence
