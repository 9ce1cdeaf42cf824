"""Networks by name: the model with its weights, its preprocessing and the names of its classes, ready for photos."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from ..._random_numbers import OwnRandomNumbers
from ...class_names import find_class, imagenet_class_names, numbered_class_names, read_class_names
from ...preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from ...probabilities import check_rule, known_rule
from ...targets.outputs import as_rows
from ...visual.stamp import RANDOM_WEIGHTS
from ..question import Question, QuestionError
from .architectures import Architecture, built_in, from_factory, from_timm, from_torchvision, known_names
from .weights import build_with_weights, read_weights

if TYPE_CHECKING:
    from ... import Explanation

__all__ = ["Network", "load_network"]

BUILT_IN = "efficientnet_lite0"
RANDOM = "random"
# The preprocessing that most networks for photos were trained with; assumed if nothing is known about a network.
_PROBABILITY_NOTE = (
    "scores are shown where the outputs of {name} are no probabilities, because its classes may exclude each other or "
    "not; --probabilities softmax or sigmoid says which"
)
IMAGENET = Preprocess((224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD, crop=224 / 256)


@dataclass(frozen=True)
class Network:
    """A classifier in eval mode, with the preprocessing of its photos and the names of its classes.

    Attributes:
        title: its name for messages, with the origin of its weights.
        model: (B,3,height,width) -> logits (B, number of classes).
        preprocess: turns photos into the model's input.
        class_names: the name of each logit.
        probabilities: what the outputs are; see :func:`gradcam_fast.probabilities.known_rule`.
        notes: assumptions about the network, one sentence each.
        explain: explains batches at the resolution of the layer, ``(images, target, topk)``; None if the model is to be
            explained.
    """

    title: str
    model: torch.nn.Module
    preprocess: Preprocess
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    probabilities: str | None = "auto"
    explain: Callable[..., Explanation] | None = None

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the input.

        Raises:
            ValueError: it depends on the photo.
        """
        if self.preprocess.size is None:
            raise ValueError(f"the input of {self.title} has no fixed size; give one with --size")
        return self.preprocess.size

    def ask(
        self,
        *,
        target: str | int | None = None,
        topk: int | None = None,
        layer: str | None = None,
        method: str = "gradcam",
        default_topk: int = 1,
    ) -> Question:
        """A question that this network can answer.

        Args:
            target: a class: its number, or a part of its name.
            topk: how many of the most probable classes.
            layer, method: as in `Question`.
            default_topk: how many of the most probable classes, if neither ``target`` nor ``topk`` is given.

        Raises:
            QuestionError: a class that the network does not have, or a name that several classes match.
        """
        count = len(self.class_names)
        if topk and topk > count:
            raise QuestionError("topk", f"{topk} is more than this network's {count} classes; give at most {count}")
        number = None if target is None else self.find_class(target)
        return Question(
            target=number,
            topk=None if number is not None else topk or min(default_topk, count),
            layer=layer,
            method=method,
        )

    def find_class(self, target: str | int) -> int:
        """The number of a class, from its number or a part of its name.

        Raises:
            QuestionError: no class, or several, are of that name.
        """
        try:
            return find_class(str(target), self.class_names)
        except ValueError as error:
            raise QuestionError("target", str(error)) from None


def load_network(
    name: str,
    *,
    weights: str | Path | None = None,
    classes: str | Path | None = None,
    size: tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop: float | Literal["auto"] | None = "auto",
    probabilities: str | None = "auto",
    download: bool = False,
) -> Network:
    """Build a network by name from files that are already on this machine; nothing is downloaded unless told to.

    Args:
        name: ``efficientnet_lite0``, which is built in; a classifier of torchvision or timm (``timm:NAME`` if both
            have one of that name); or ``package.module:factory``, a callable without arguments that returns a model.
        weights: a ``.safetensors`` or ``torch.save`` file, read without running code; it decides the number of
            classes. None takes the trained weights that torchvision or timm downloaded earlier, or the weights that
            the factory made. ``"random"`` gives an untrained network, the same in every run.
        classes: file with the names of the classes, see :func:`.class_names.read_class_names`.
        size: (height, width) of the input.
        mean, std: per channel, on the [0,1] scale.
        crop: the share of the shorter side that the network sees, as in `Preprocess`; None squeezes the whole photo;
            ``auto`` is as published. Where size, mean, std or crop are not given, the values published with the weights
            are used; if there are none, those usual for ImageNet, and a note says so.
        probabilities: what the outputs are: ``softmax``, ``sigmoid``, ``given``, None for scores only, or ``auto``;
            see :mod:`gradcam_fast.probabilities`. A note says so where it is not known.
        download: whether trained weights of torchvision or timm are downloaded if this machine has none.

    Raises:
        ValueError: an unknown name, weights that do not fit or are refused, or a network that does not run.
        FileNotFoundError: a file is missing, or this machine has no trained weights for the network.
        ImportError: a package is missing; the message says what to install.
        OSError: weights could not be downloaded.

    Example:
        >>> network = load_network("resnet18", weights="random")
        >>> network.title, network.class_names[285], network.preprocess.crop
        ('resnet18 of torchvision (random weights)', 'Egyptian cat', 0.875)
    """
    file = None if weights is None or str(weights) == RANDOM else Path(weights)
    if classes is not None and not Path(classes).is_file():  # before anything slow
        raise FileNotFoundError(f"classes {classes}: no such file")
    architecture = _find_architecture(name, size, file)
    random = weights is not None and file is None
    model, origin = _with_weights(architecture, file, random=random, download=download)
    model = model.eval()
    config = getattr(model, "pretrained_cfg", None)  # timm's models carry it, also if a factory made them
    published = architecture.preprocess or (Preprocess.of(config) if config else None)
    overrides: dict[str, Any] = {"size": size, "mean": mean and tuple(mean), "std": std and tuple(std)}
    preprocess = (published or IMAGENET).changed(**overrides, crop=crop)
    notes: tuple[str, ...] = () if published else (_preprocessing_note(name, preprocess, overrides),)
    count = _count_classes(name, model, preprocess)
    if classes is not None:
        class_names = read_class_names(Path(classes), count)
    elif architecture.imagenet and count == 1000:
        class_names = imagenet_class_names()
    else:
        class_names = numbered_class_names(count)
    title = f"{architecture.title} ({origin})" if origin else architecture.title
    rule = check_rule(probabilities)
    if rule == "auto":
        rule = known_rule(model, count, class_names)
        if rule == "auto" and count > 1:
            notes += (_PROBABILITY_NOTE.format(name=name),)
    return Network(title, model, preprocess, class_names, notes, rule)


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


def _with_weights(
    architecture: Architecture, file: Path | None, *, random: bool, download: bool
) -> tuple[torch.nn.Module, str]:
    """The model, and the origin of its weights in words."""

    def build(classes: int | None) -> torch.nn.Module:
        with OwnRandomNumbers():
            return architecture.build(classes)

    if random:
        return build(None), RANDOM_WEIGHTS
    if file is None and architecture.complete:
        return architecture.build(None), ""  # a factory that makes its own weights may seed PyTorch for them
    source = file or architecture.trained or (_downloaded(architecture) if download else None)
    if source is None:
        ways = "give --weights FILE, or --weights random for an untrained network"
        if architecture.download is not None:
            ways = f"give --download, run {architecture.download_command} once, {ways}"
        raise FileNotFoundError(f"this machine has no trained weights for {architecture.title}; {ways}")
    model = build_with_weights(
        build,
        architecture.rename(read_weights(source)),
        f"weights {source} do not fit {architecture.title}",
        takes_class_count=architecture.takes_class_count,
        unused=architecture.unused,
    )
    return model, f"weights of {file.name}" if file else architecture.trained_title


def _downloaded(architecture: Architecture) -> Path | None:
    if architecture.download is None:
        return None
    try:
        with OwnRandomNumbers():  # timm builds the network, too
            return architecture.download()
    except Exception as error:  # every library reports a missing network in its own way
        raise OSError(
            f"the weights of {architecture.title} could not be downloaded ({' '.join(str(error).split())[:200]}); give "
            "--weights FILE, or --weights random for an untrained network"
        ) from error


def _preprocessing_note(name: str, preprocess: Preprocess, overrides: dict[str, Any]) -> str:
    height, width = preprocess.size or (224, 224)
    numbers = f"mean {preprocess.mean} and std {preprocess.std}"
    note = f"photos for {name} are resized to {height}x{width} and normalised with {numbers}"
    assumed = [f"--{key}" for key, value in overrides.items() if value is None]
    return f"{note}; {', '.join(assumed)} not given, so ImageNet's values are used" if assumed else note


@torch.no_grad()
def _count_classes(name: str, model: torch.nn.Module, preprocess: Preprocess) -> int:
    weight = next(model.parameters(), torch.empty(0, dtype=torch.float32, device="cpu"))
    shape = (1, 3, *(preprocess.size or (224, 224)))
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
