"""Warnings point to the file and line of the caller's code, through every public function."""

import inspect
import logging
import os
import re
import subprocess
import sys
import warnings

import pytest
import torch
from support.networks import ConvNet

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


class WithMirrorImage(ConvNet):
    """The image and its mirror image, whose maps are of other places."""

    def forward(self, images):
        return super().forward(images) + super().forward(images.flip(-1))


@pytest.mark.parametrize("call", [through_explain, through_an_explainer, through_feature_maps])
def test_a_warning_of_the_search_points_to_the_callers_line(call):
    with pytest.warns(UserWarning, match="show a part of what the score depends on") as caught:
        _, line = call(WithMirrorImage(), torch.randn(1, 3, 16, 16))
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


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.DEBUG, "gradcam_fast")
    return caplog


def test_each_cause_is_warned_of_once_a_model_also_in_the_log(log, images):
    model, other = ConvNet(), ConvNet()
    for each in (model, other):
        torch.nn.init.zeros_(each.head[4].weight)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for each in (model, model, other, model):
            explain(each, images, layer="features.3")
        explain(model, images, layer="features.1")
    assert ["features.1" in str(warning.message) for warning in caught] == [False, False, True]
    logged = [record for record in log.records if record.levelno == logging.WARNING]
    assert [record.getMessage() for record in logged] == [str(warning.message) for warning in caught]
    assert {record.name for record in logged} == {"gradcam_fast"}


def test_times_are_logged_for_debugging(log, images):
    model = ConvNet()
    explain(model, images)
    searched, explained = (record for record in log.records if record.levelno == logging.DEBUG)
    assert searched.getMessage().startswith("searched for the layer, found ('features',)")
    assert re.fullmatch(r"explained 3 images at features in \d+\.\d ms", explained.getMessage())


def test_the_log_is_silent_by_default(capfd, images):
    script = "import torch, gradcam_fast; from support.networks import ConvNet\nmodel = ConvNet()\n"
    script += "torch.nn.init.zeros_(model.head[4].weight); gradcam_fast.explain(model, torch.rand(1, 3, 16, 16))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    assert "gradient" not in capfd.readouterr().err
