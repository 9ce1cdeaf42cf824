"""From a capture to what the op makes heatmaps of, by any method and smoothing."""

from __future__ import annotations

from dataclasses import replace

from . import method_module
from .method import Captured, Evidence, Method

__all__ = ["evidence_of", "method_of"]


def method_of(name: str) -> Method | None:
    """The method of this name; None for one of the op's."""
    module = method_module(name)
    return None if module is None else module.METHODS[name]


def evidence_of(captured: Captured) -> Evidence:
    """What the op makes the heatmaps of a call of."""
    choices = captured.choices
    evidence = Evidence(captured.capture.activations, captured.capture.gradients, choices.method)
    if "noise" in choices.smoothings:
        from .noise import smoothed_gradients

        evidence = smoothed_gradients(captured)
        capture = replace(captured.capture, activations=evidence.activations, gradients=evidence.gradients)
        captured = captured._replace(capture=capture)
    method = method_of(choices.method)
    if method is not None:
        return method.evidence(captured)
    if "eigen" in choices.smoothings:
        from .eigen import smoothed

        return smoothed(captured, evidence.method)
    return evidence
