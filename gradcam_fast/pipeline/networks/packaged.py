"""Packages (.pt2) in the place of networks: photos are explained as with the network that was exported.

Neither torchvision or timm nor the model's code is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ... import Explanation
from ...class_names import numbered_class_names
from ...packages import load, package_info
from ...preprocess import Preprocess
from ..question import Question, QuestionError
from . import Network

if TYPE_CHECKING:
    from torch import Tensor

    from ...packages import PackageInfo
    from ...types import Target

__all__ = ["PackagedModel", "PackagedNetwork", "described", "export_options", "facts", "load_package"]


class PackagedModel(nn.Module):
    """A package as a model: it predicts by explaining, and explains at the resolution of the layer.

    Any number of images will do: more than the package takes go through in parts, fewer are filled up.
    """

    def __init__(self, path: Path, device: str | None) -> None:
        super().__init__()
        self.path, self.info = path, package_info(path)
        self._explainer = load(path, device=device, layer_maps=self.info.layer_size is not None)
        self._takes_classes = self.info.record.target.kind == "input"

    def forward(self, images: Tensor) -> Any:
        """The logits (B,N)."""
        made = self.info.record.target
        shape = (len(images),) if made.targets is None else (len(images), made.targets)
        # Where classes come in, any will do: the logits do not depend on them.
        return self.explain(images, torch.zeros(shape, dtype=torch.int64) if self._takes_classes else None).logits

    def explain(self, images: Tensor, target: Target = None, topk: int | None = None) -> Explanation:
        """Explain a batch: the classes that the package was made for, or ``target`` where it takes the classes."""
        low, high = self.info.batch
        parts = []
        for start in range(0, len(images), high):
            part = images[start : start + high]
            # Fewer than it takes: the first images once more, whose results are dropped.
            rows = torch.arange(max(len(part), low), device=part.device) % len(part)
            asked = target[start : start + high][rows] if isinstance(target, torch.Tensor) else target
            explanation = self._explainer(
                part if len(rows) == len(part) else part[rows], asked if self._takes_classes else None
            )
            parts.append({name: value[: len(part)] for name, value in _tensors(explanation).items()})
        joined: dict[str, Any] = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return replace(explanation, **joined)


def _tensors(explanation: Explanation) -> dict[str, Tensor]:
    values = {field.name: getattr(explanation, field.name) for field in fields(explanation)}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


@dataclass(frozen=True)
class PackagedNetwork(Network):
    """The network of a package, which answers the question that it was exported for.

    Attributes:
        package: the package; the same as ``model``.
    """

    package: PackagedModel | None = None

    def ask(
        self,
        *,
        target: str | int | None = None,
        topk: int | None = None,
        layer: str | None = None,
        method: str = "gradcam",
        default_topk: int = 1,
    ) -> Question:
        """What the package explains, as far as the arguments name it.

        Raises:
            ValueError: the arguments ask for something else than the package was made for.
        """
        assert self.package is not None
        info, name = self.package.info, self.package.path.name
        record, made = info.record, info.record.target
        again = "export it again for another one"
        if layer is not None and layer != record.layer:
            raise QuestionError("layer", f"{name} explains {record.layer}; {again}")
        if method not in ("gradcam", record.method):
            raise QuestionError("method", f"{name} explains by {record.method}; {again}")
        if made.kind == "callable":
            raise ValueError(f"{name} explains the score of a function, which is no class")
        count = made.targets or 1
        if made.kind == "input":
            if target is None or made.targets is not None:
                raise QuestionError("target", f"{name} explains the class that is asked for; give one")
            return Question(self.find_class(target), None, layer, record.method)
        if target is not None:
            raise QuestionError(
                "target", f"{name} explains {described(info)}; export it with --target input to choose later"
            )
        if topk is not None and topk != count:
            raise QuestionError("topk", f"{name} explains {described(info)}; {again}")
        if made.kind == "classes" and made.targets is None:
            return Question(made.classes[0], None, layer, record.method)
        return Question(None, count, layer, record.method)


def load_package(path: Path, device: str | None = None) -> PackagedNetwork:
    """The network in a package.

    Raises:
        ValueError: the package says too little about photos.
        FileNotFoundError, gradcam_fast.exceptions.PackageError: as :func:`gradcam_fast.load`.
    """
    model = PackagedModel(path, device)
    info = model.info
    spec = info.images
    if info.preprocessing is None or len(info.record.inputs) - (info.record.target.kind == "input") != 1:
        raise ValueError(f"{path} does not say how photos are prepared for it; export it with preprocessing=")
    preprocess = _preprocessing_of(info)
    if preprocess.size is None or tuple(spec.shape[1:]) != (3, *preprocess.size):
        raise ValueError(
            f"{path} takes inputs of shape {spec.shape[1:]}, which are no photos in RGB of {preprocess.size}"
        )
    names = info.class_names or numbered_class_names(_count_classes(model, preprocess))
    return PackagedNetwork(
        info.title,
        model.eval(),
        preprocess,
        names,
        probabilities=info.probabilities,
        explain=model.explain,
        package=model,
    )


def _preprocessing_of(info: PackageInfo) -> Preprocess:
    """The preprocessing that a package names.

    Raises:
        ValueError: a value is missing, or out of its range.
    """
    try:
        return Preprocess.of(dict(info.preprocessing or {}))
    except TypeError as error:
        raise ValueError(f"the package names a preprocessing that is not known here ({error})") from None


def _count_classes(model: PackagedModel, preprocess: Preprocess) -> int:
    spec = model.info.images
    assert preprocess.size is not None
    image = torch.zeros((1, 3, *preprocess.size), dtype=spec.dtype, device=spec.device.type)
    target = 0 if model.info.record.target.kind == "input" else None
    logits: Tensor = model.explain(image, target).logits
    return logits.flatten(1).shape[1]


def described(info: PackageInfo) -> str:
    """Which classes a package explains, in words."""
    made = info.record.target
    if made.kind == "classes":
        names = [info.class_names[number] if info.class_names else str(number) for number in made.classes]
        return f"the class {' and '.join(names)}"
    texts = {
        "highest": "the most probable class",
        "topk": f"the {made.targets} most probable classes",
        "input": "the class asked for" if made.targets is None else f"{made.targets} classes asked for",
        "callable": "the score of a function",
    }
    return texts[made.kind]


def facts(info: PackageInfo) -> dict[str, Any]:
    """What a package says of itself, in the order in which it is printed; plain values."""
    spec, record = info.images, info.record
    low, high = info.batch
    size = record.size or spec.shape[2:]
    return {
        "network": info.title,
        "explains": described(info),
        "layer": record.layer if isinstance(record.layer, str) else list(record.layer),
        "method": record.method,
        "heatmaps": list(size),
        "layer_maps": list(info.layer_size) if info.layer_size else None,
        "normalize": record.normalize,
        "relu": record.relu,
        "input": list(spec.shape[1:]),
        "batch": [low, high],
        "dtype": str(spec.dtype).removeprefix("torch."),
        "device": spec.device.type,
        "classes": len(info.class_names) or None,
        "preprocessing": dict(info.preprocessing) if info.preprocessing else None,
        "operator": "PyTorch's own" if info.self_contained else f"gradcam_fast's library for {spec.device.type}",
        "torch": info.torch,
        "gradcam_fast": info.gradcam_fast,
        "processor": info.instruction_set,
    }


def export_options(network: Network) -> dict[str, Any]:
    """What the package of a network says beside the explanation, as arguments of ``gradcam_fast.export``."""
    return {
        "names": network.class_names,
        "preprocessing": network.preprocess,
        "probabilities": network.probabilities,
        "title": network.title,
    }
