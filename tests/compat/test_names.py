"""`install` gives the room pytorch-grad-cam's own name, and names that it does not have are refused in a sentence."""

import inspect
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import gradcam_fast
from gradcam_fast.compat import pytorch_grad_cam

ROOT = Path(gradcam_fast.__file__).parents[1]


def output_of(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_importing_gradcam_fast_imports_nothing_of_it():
    assert output_of(
        "import sys, gradcam_fast; print([n for n in sys.modules if 'compat' in n and 'gradcam' in n])"
    ) == ("[]\n")


def test_installed_it_is_imported_by_the_librarys_own_names():
    code = """
import gradcam_fast
gradcam_fast.compat.install()
gradcam_fast.compat.install()
import pytorch_grad_cam.metrics.road as road
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.base_cam import BaseCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from gradcam_fast.compat.pytorch_grad_cam import GradCAM as ours
from gradcam_fast.compat.pytorch_grad_cam.metrics import road as our_road
print(GradCAM is ours, issubclass(GradCAM, BaseCAM), road is our_road)
try:
    from pytorch_grad_cam import GradCam
except ImportError as error:
    print(error)
"""
    answers, sentence = output_of(code).splitlines()
    assert answers == "True True True"
    assert "has no 'GradCam'; nearest: 'GradCAM'" in sentence


def test_install_says_that_the_library_itself_is_already_imported():
    pytest.importorskip("pytorch_grad_cam")
    code = """
import pytorch_grad_cam, gradcam_fast
try:
    gradcam_fast.compat.install()
except RuntimeError as error:
    print(error)
"""
    sentence = output_of(code)
    assert "already imported, from" in sentence and "before the first import" in sentence


@pytest.mark.parametrize(
    ("package", "name", "nearest"),
    [
        ("", "GradCam", "GradCAM"),
        ("", "GradCAMpp", "GradCAM"),
        ("", "ScoreCam", "ScoreCAM"),
        ("", "gradcam", "GradCAM"),
        ("", "grad_cam_plus_plus", "grad_cam_plusplus"),
        (".utils", "images", "image"),
        (".metrics", "roads", "road"),
        (".utils.image", "show_cam", "show_cam_on_image"),
        (".utils.model_targets", "ClassifierTarget", "ClassifierOutputTarget"),
        (".metrics.road", "RoadCombined", "ROADCombined"),
        (".base_cam", "BaseCam", "BaseCAM"),
    ],
)
def test_a_missing_name_is_refused_with_the_nearest(package, name, nearest):
    module = import_module(f"gradcam_fast.compat.pytorch_grad_cam{package}")
    sentence = f"has no '{name}'; nearest: .*'{nearest}'"
    with pytest.raises(AttributeError, match=sentence):
        getattr(module, name)
    with pytest.raises(ImportError, match=sentence):
        exec(f"from {module.__name__} import {name}")
    with pytest.raises(ImportError, match=sentence):
        import_module(f"{module.__name__}.{name}")
    assert not hasattr(module, name)


def test_every_module_of_the_library_is_there_with_its_names():
    """The module left out does not run there either: it asks for arguments that the base class does not pass."""
    peer = pytest.importorskip("pytorch_grad_cam")
    assert names_of_modules(peer) - names_of_modules(pytorch_grad_cam) == {"ablation_cam_multilayer"}
    for name in vars(peer):
        if name[0].isupper() or name.startswith("run_"):
            assert hasattr(pytorch_grad_cam, name), name


def names_of_modules(package):
    prefix = f"{package.__name__}."
    return {found.name.removeprefix(prefix) for found in pkgutil.walk_packages(package.__path__, prefix)}


def test_every_class_and_function_of_a_module_is_there_with_its_arguments():
    peer = pytest.importorskip("pytorch_grad_cam")
    missing = []
    for module in names_of_modules(peer) & names_of_modules(pytorch_grad_cam):
        theirs, ours = (import_module(f"{package.__name__}.{module}") for package in (peer, pytorch_grad_cam))
        for name, value in vars(theirs).items():
            if getattr(value, "__module__", None) != theirs.__name__ or name.startswith("_"):
                continue
            if not hasattr(ours, name):
                missing.append((module, name))
                continue
            of_both = value, getattr(ours, name)
            if inspect.isfunction(value):
                missing.extend((module, name, argument) for argument in arguments_missing(*of_both))
                continue
            for method in {"__init__", "__call__", "forward", "get_cam_weights", "get_cam_image"} & set(vars(value)):
                pair = (getattr(cls, method, None) for cls in of_both)
                missing.extend((module, method, argument) for argument in arguments_missing(*pair))
    # Of one layer the argument is `target_layer` everywhere here, and an autograd function's first one is its context.
    assert sorted(missing) == [
        ("base_cam", "get_cam_weights", "target_layers"),
        ("grad_cam_plusplus", "get_cam_weights", "target_layers"),
        ("guided_backprop", "forward", "self"),
    ]


def arguments_missing(theirs, ours):
    if not (inspect.isfunction(theirs) and inspect.isfunction(ours)):
        return []
    wanted, there = (inspect.signature(function).parameters for function in (theirs, ours))
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in there.values())
    names = [name for name, parameter in wanted.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    return [] if takes_any else [name for name in names if name not in there]
