"""Networks by name: the model with its weights, its preprocessing and the names of its classes, ready for photos."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from ...targets.outputs import as_rows
from .architectures import Architecture, built_in, from_factory, from_timm, from_torchvision, known_names
from .class_names import imagenet_class_names, numbered_class_names, read_class_names
from .preprocessing import Preprocessing
from .weights import build_with_weights, read_weights

if TYPE_CHECKING:
    from ... import Explanation

__all__ = ["Network", "load_network"]

BUILT_IN = "efficientnet_lite0"
RANDOM = "random"
# The preprocessing that most networks for photos were trained with; assumed if nothing is known about a network.
IMAGENET = Preprocessing((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224 / 256, "bilinear")


@dataclass(frozen=True)
class Network:
    """A classifier in eval mode, with the preprocessing of its photos and the names of its classes.

    Attributes:
        title: its name for messages, with the origin of its weights.
        model: (B,3,height,width) -> logits (B, number of classes).
        preprocess: turns photos into the model's input.
        class_names: the name of each logit.
        notes: assumptions about the network, one sentence each.
        explain: explains batches at the resolution of the layer, ``(images, target, topk)``; None if the model is to be
            explained.
    """

    title: str
    model: torch.nn.Module
    preprocess: Preprocessing
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    explain: Callable[..., Explanation] | None = None


def load_network(
    name: str,
    *,
    weights: str | Path | None = None,
    classes: str | Path | None = None,
    size: tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop: float | Literal["auto"] | None = "auto",
) -> Network:
    """Build a network by name from files that are already on this machine; nothing is ever downloaded.

    Args:
        name: ``efficientnet_lite0``, which is built in; a classifier of torchvision or timm (``timm:NAME`` if both
            have one of that name); or ``package.module:factory``, a callable without arguments that returns a model.
        weights: a ``.safetensors`` or ``torch.save`` file, read without running code; it decides the number of
            classes. None takes the trained weights that torchvision or timm downloaded earlier, or the weights that
            the factory made. ``"random"`` gives an untrained network, the same in every run.
        classes: file with the names of the classes, see :func:`.class_names.read_class_names`.
        size: (height, width) of the input.
        mean, std: per channel, on the [0,1] scale.
        crop: see `Preprocessing`. Where size, mean, std or crop are not given, the values published with the weights
            are used; if there are none, those usual for ImageNet, and a note says so.

    Raises:
        ValueError: an unknown name, weights that do not fit or are refused, or a network that does not run.
        FileNotFoundError: a file is missing, or this machine has no trained weights for the network.
        ImportError: a package is missing; the message says what to install.

    Example:
        >>> network = load_network("resnet18", weights="random")
        >>> network.title, network.class_names[285], network.preprocess.crop
        ('resnet18 of torchvision (random weights)', 'Egyptian cat', 0.875)
    """
    file = None if weights is None or str(weights) == RANDOM else Path(weights)
    if classes is not None and not Path(classes).is_file():  # before anything slow
        raise FileNotFoundError(f"classes {classes}: no such file")
    architecture = _find_architecture(name, size, file)
    model, origin = _with_weights(architecture, file, random=weights is not None and file is None)
    model = model.eval()
    config = getattr(model, "pretrained_cfg", None)  # timm's models carry it, also if a factory made them
    if config and crop != "auto":
        config = {**config, "crop_mode": "center", "crop_pct": 1.0}
    published = architecture.preprocess or (Preprocessing.from_config(config) if config else None)
    overrides: dict[str, Any] = {"size": size, "mean": mean and tuple(mean), "std": std and tuple(std)}
    preprocess = replace(published or IMAGENET, **{key: value for key, value in overrides.items() if value is not None})
    if crop != "auto":
        preprocess = replace(preprocess, crop=crop)
    notes = () if published else (_preprocessing_note(name, preprocess, overrides),)
    count = _count_classes(name, model, preprocess)
    if classes is not None:
        class_names = read_class_names(Path(classes), count)
    elif architecture.imagenet and count == 1000:
        class_names = imagenet_class_names()
    else:
        class_names = numbered_class_names(count)
    title = f"{architecture.title} ({origin})" if origin else architecture.title
    return Network(title, model, preprocess, class_names, notes)


def _find_architecture(name: str, size: tuple[int, int] | None, file: Path | None) -> Architecture:
    if name == BUILT_IN:
        try:
            return built_in()
        except ImportError as error:
            raise ImportError(
                f"{name} needs the package {error.name}, which is not installed; run pip install 'gradcam-fast[demo]'"
            ) from error
    if name.startswith("timm:"):
        architecture = from_timm(name.removeprefix("timm:"), size)
    elif ":" in name:
        return from_factory(name)
    else:
        architecture = from_torchvision(name, size, file) or from_timm(name, size)
    if architecture is not None:
        return architecture
    similar = difflib.get_close_matches(name.removeprefix("timm:"), {BUILT_IN, *known_names()}, n=3)
    hint = f" (did you mean {' or '.join(similar)}?)" if similar else ""
    raise ValueError(
        f"model {name!r} is unknown{hint}; give {BUILT_IN}, the name of a classifier in torchvision or timm (if they "
        "are installed), or package.module:factory"
    )


def _with_weights(architecture: Architecture, file: Path | None, *, random: bool) -> tuple[torch.nn.Module, str]:
    """The model, and the origin of its weights in words."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if random:
            return architecture.build(None), "random weights"
        if file is None and architecture.complete:
            return architecture.build(None), ""
        source = file or architecture.trained
        if source is None:
            raise FileNotFoundError(
                f"this machine has no trained weights for {architecture.title}, and none are downloaded; "
                "give --weights FILE, or --weights random for an untrained network"
            )
        model = build_with_weights(
            architecture.build,
            architecture.rename(read_weights(source)),
            f"weights {source} do not fit {architecture.title}",
            takes_class_count=architecture.takes_class_count,
            unused=architecture.unused,
        )
        return model, f"weights of {file.name}" if file else architecture.trained_title


def _preprocessing_note(name: str, preprocess: Preprocessing, overrides: dict[str, Any]) -> str:
    height, width = preprocess.size
    numbers = f"mean {preprocess.mean} and std {preprocess.std}"
    note = f"photos for {name} are resized to {height}x{width} and normalised with {numbers}"
    assumed = [f"--{key}" for key, value in overrides.items() if value is None]
    return f"{note}; {', '.join(assumed)} not given, so ImageNet's values are used" if assumed else note


@torch.no_grad()
def _count_classes(name: str, model: torch.nn.Module, preprocess: Preprocessing) -> int:
    weight = next(model.parameters(), torch.empty(0))
    shape = (1, 3, *preprocess.size)
    try:
        output = model(torch.zeros(shape, dtype=weight.dtype, device=weight.device))
    except Exception as error:  # whatever the user's model raises
        raise ValueError(
            f"model {name!r} does not run on an input of shape {shape} ({' '.join(str(error).split())[:200]}); "
            "give its input size with --size"
        ) from error
    try:
        logits = as_rows(output)
    except (TypeError, ValueError) as error:
        raise ValueError(f"model {name!r} is not a classifier: {error}") from error
    if len(logits) != 1:
        raise ValueError(f"model {name!r} is not a classifier: it returned {len(logits)} rows of logits for one photo")
    return logits.shape[1]
