"""The public surface: what `dir` shows of the package and of Explainer, and what `import *` brings."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from support.networks import ConvNet

import gradcam_fast

PUBLIC = [
    "Explainer",
    "Explanation",
    "Preprocess",
    "backend",
    "cam",
    "compat",
    "compiled",
    "exceptions",
    "explain",
    "export",
    "features",
    "figures",
    "layers",
    "library_path",
    "load",
    "methods",
    "metrics",
    "overlay",
    "packages",
    "reference",
    "targets",
]
NEEDS_MATPLOTLIB = {"figures"}


def test_dir_shows_exactly_the_public_names():
    assert dir(gradcam_fast) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_can_be_imported_and_is_documented(name):
    if name in NEEDS_MATPLOTLIB:
        pytest.importorskip("matplotlib")
    value = getattr(gradcam_fast, name)
    assert value.__doc__ and value.__doc__.strip()


@pytest.mark.parametrize(
    "name", ["compat", "compiled", "exceptions", "features", "layers", "metrics", "packages", "targets", "types"]
)
def test_a_public_module_can_be_imported_by_its_own_name(name):
    module = import_module(f"gradcam_fast.{name}")
    assert module is getattr(gradcam_fast, name)
    assert all(hasattr(module, public) for public in module.__all__)


@pytest.mark.parametrize("name", ["explian", "contract", "_ON_DEMAND_"])
def test_a_name_that_does_not_exist_raises_an_attribute_error(name):
    with pytest.raises(AttributeError, match=f"module 'gradcam_fast' has no attribute '{name}'"):
        getattr(gradcam_fast, name)


def test_import_star_works_without_matplotlib():
    code = (
        "import sys\n"
        "sys.modules['matplotlib'] = sys.modules['PIL'] = None\n"  # importing them raises ImportError
        "from gradcam_fast import *\n"
        "print(*sorted(name for name in globals() if not name.startswith('__') and name != 'sys'))\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(gradcam_fast.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.split() == [name for name in PUBLIC if name not in NEEDS_MATPLOTLIB]


MEMBERS = ["compile", "eager_because", "model", "output", "probability_rule", "replace"]


def test_an_explainer_shows_only_its_public_members():
    for shown in (dir(gradcam_fast.Explainer), dir(gradcam_fast.Explainer(ConvNet()))):
        assert [name for name in shown if not name.startswith("_")] == MEMBERS


@pytest.mark.parametrize("name", [*MEMBERS, "__call__"])
def test_the_members_of_an_explainer_are_documented(name):
    assert getattr(gradcam_fast.Explainer, name).__doc__


def test_the_model_of_an_explainer_is_the_module_that_runs_and_cannot_be_replaced():
    model = ConvNet()
    assert gradcam_fast.Explainer(model).model is model
    assert gradcam_fast.Explainer(torch.compile(model, backend="eager")).model is model
    with pytest.raises(AttributeError):
        gradcam_fast.Explainer(model).model = ConvNet()


def test_eager_because_is_none_without_a_cuda_graph_and_a_reason_where_none_can_be_recorded(images):
    explainer = gradcam_fast.Explainer(ConvNet(), layer="features")
    explainer(images)
    assert explainer.eager_because is None
    explainer = gradcam_fast.Explainer(ConvNet(), layer="features", cuda_graph=True)
    with pytest.warns(RuntimeWarning, match="runs eagerly") as caught:
        explainer(images)
    assert "cpu" in explainer.eager_because.lower()
    assert str(caught[0].message).endswith(explainer.eager_because)
