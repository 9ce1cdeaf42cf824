"""Warnings point to the file and line of the caller's code, through every public function."""

import inspect
import warnings

import pytest
import torch
from support.networks import ConvNet, MaskedPatchNet

from gradcam_fast import Explainer, explain
from gradcam_fast._model.warning import warn_caller
from gradcam_fast.features import feature_maps


def through_explain(model, images):
    return explain(model, images), inspect.currentframe().f_lineno


def through_an_explainer(model, images):
    explainer = Explainer(model)
    return explainer(images), inspect.currentframe().f_lineno


def through_feature_maps(model, images):
    return feature_maps(model, images), inspect.currentframe().f_lineno


@pytest.mark.parametrize("call", [through_explain, through_an_explainer, through_feature_maps])
def test_a_warning_of_the_search_points_to_the_callers_line(call):
    with pytest.warns(UserWarning, match="only cuts the images into patches") as caught:
        _, line = call(MaskedPatchNet(3), torch.randn(1, 3, 64, 40))
    assert [(warning.filename, warning.lineno) for warning in caught] == [(__file__, line)]


@pytest.mark.parametrize("call", [through_explain, through_an_explainer])
def test_a_warning_of_the_explainer_points_to_the_callers_line(call, images):
    model = ConvNet()
    torch.nn.init.zeros_(model.head[4].weight)
    with pytest.warns(UserWarning, match="zero everywhere") as caught:
        _, line = call(model, images)
    assert [(warning.filename, warning.lineno) for warning in caught] == [(__file__, line)]


def test_a_warning_of_cuda_graphs_points_to_the_callers_line(images):
    explainer = Explainer(ConvNet(), layer="features", cuda_graph=True)
    with pytest.warns(RuntimeWarning, match="runs eagerly") as caught:
        line = inspect.currentframe().f_lineno + 1
        explainer(images)
    assert [(warning.filename, warning.lineno) for warning in caught] == [(__file__, line)]


def function_of_module(name):
    """A function in a module of this name, that warns."""
    namespace = {"__name__": name, "warn_caller": warn_caller}
    exec(compile("def warn():\n    warn_caller('a message', FutureWarning)\n", f"{name}.py", "exec"), namespace)
    return namespace["warn"]


@pytest.mark.parametrize(
    ("module", "filename"),
    [
        ("gradcam_fast", __file__),
        ("gradcam_fast._room.module", __file__),
        ("gradcam_fast_tools", "gradcam_fast_tools.py"),
        ("another.gradcam_fast", "another.gradcam_fast.py"),
    ],
)
def test_only_modules_of_this_package_are_skipped(module, filename):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function_of_module(module)()
    assert [(str(warning.message), warning.category, warning.filename) for warning in caught] == [
        ("a message", FutureWarning, filename)
    ]
