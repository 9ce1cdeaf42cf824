"""The aliases of types: signatures and help of the public functions show them by name."""

import inspect
import pydoc
import re

import pytest

import gradcam_fast
from gradcam_fast import types
from gradcam_fast.features import feature_maps
from gradcam_fast.layers import list_layers

ARGUMENTS = {
    "images": "Images",
    "target": "Target",
    "layer": "Layer",
    "size": "HeatmapSize | None",
    "output": "Output | None",
    "tokens": "Tokens",
    "call": "Call",
    "names": "Names",
    "when": "When | None",
}


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (gradcam_fast.explain, ["images", "target", "layer", "size", "output", "tokens", "call", "names"]),
        (gradcam_fast.Explainer, ["layer", "size", "output", "tokens", "call", "names", "when"]),
        (gradcam_fast.Explainer.__call__, ["images", "target"]),
        (feature_maps, ["images", "target", "output", "tokens"]),
        (list_layers, ["images"]),
    ],
    ids=["explain", "Explainer", "Explainer.__call__", "feature_maps", "list_layers"],
)
def test_annotations_are_the_names_of_the_aliases(function, arguments):
    parameters = inspect.signature(function).parameters
    assert {name: parameters[name].annotation for name in arguments} == {name: ARGUMENTS[name] for name in arguments}


@pytest.mark.parametrize(
    ("subject", "arguments"),
    [
        (gradcam_fast.Explainer, ["layer", "size", "output", "tokens", "call", "names", "when", "images", "target"]),
        (gradcam_fast.explain, ["images", "target", "layer", "size", "output", "tokens", "call", "names"]),
    ],
    ids=["Explainer", "explain"],
)
def test_help_shows_the_names_of_the_aliases(subject, arguments):
    text = pydoc.render_doc(subject, renderer=pydoc.plaintext)
    for name in arguments:
        # Python before 3.14 shows annotations in quotes.
        assert re.search(rf"\b{name}: '?{re.escape(ARGUMENTS[name])}\b", text)


def test_every_alias_in_a_signature_is_public():
    of_cam = {"Size"}
    assert {alias.removesuffix(" | None") for alias in ARGUMENTS.values()} | of_cam == set(types.__all__)


def test_explain_and_explainer_take_the_same_choices():
    explainer = dict(inspect.signature(gradcam_fast.Explainer).parameters)
    function = dict(inspect.signature(gradcam_fast.explain).parameters)
    assert set(explainer) - set(function) == {"cuda_graph", "when"}
    shared = set(explainer) & set(function)
    assert {name: explainer[name].default for name in shared} == {name: function[name].default for name in shared}
