"""Packages (.pt2) in the place of networks: photos are explained as with the network that was exported.

Neither torchvision or timm nor the model's code is needed.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import Explanation
from ..class_names import find_class, numbered_class_names
from ..packages import load, package_info
from ..preprocess import Preprocess
from .networks import Network
from .results import ExplainOptions

if TYPE_CHECKING:
    from torch import Tensor

    from ..packages import PackageInfo
    from ..types import Target

__all__ = [
    "PackagedModel",
    "described",
    "export_options",
    "facts",
    "options_of_package",
    "packaged_network",
    "placement_of_package",
]


class PackagedModel(nn.Module):
    """A package as a model: it predicts by explaining, and explains at the resolution of the layer.

    Any number of images will do: more than the package takes go through in parts, fewer are filled up.
    """

    def __init__(self, path: Path, device: str | None) -> None:
        super().__init__()
        self.path, self.info = path, package_info(path)
        self._explainer = load(path, device=device, layer_maps=self.info.layer_size is not None)

    def forward(self, images: Tensor) -> Any:
        """The logits (B,N)."""
        return self.explain(images).logits

    def explain(self, images: Tensor, target: Target = None, topk: int | None = None) -> Explanation:
        """Explain a batch. Without a ``target``, the classes are those that the package was made for."""
        low, high = self.info.batch
        parts = []
        for part in images.split(high):
            # Fewer than it takes: the first images once more, whose results are dropped.
            rows = torch.arange(max(len(part), low), device=part.device) % len(part)
            explanation = self._explainer(part if len(rows) == len(part) else part[rows], target)
            parts.append({name: value[: len(part)] for name, value in _tensors(explanation).items()})
        joined: dict[str, Any] = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return replace(explanation, **joined)


def _tensors(explanation: Explanation) -> dict[str, Tensor]:
    values = {field.name: getattr(explanation, field.name) for field in fields(explanation)}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


def placement_of_package(options: SimpleNamespace) -> tuple[torch.device, torch.dtype]:
    """Where and in what type the package runs that the options name.

    Raises:
        ValueError: the options name another type, or another kind of device.
    """
    path = Path(options.model)
    spec = package_info(path).images
    dtype, device = str(spec.dtype).removeprefix("torch."), torch.device(options.device or spec.device)
    if options.dtype not in (dtype, "float32"):
        raise ValueError(f"--dtype: {path.name} was exported in {dtype}; export it again for another one")
    if device.type != spec.device.type:
        raise ValueError(f"--device: {path.name} was exported for {spec.device.type}; export it for {device.type}")
    return device, spec.dtype


def packaged_network(options: SimpleNamespace) -> Network:
    """The network in the package that the options name.

    Raises:
        ValueError: an option that only a network takes, or a package that says too little about photos.
        FileNotFoundError, gradcam_fast.exceptions.PackageError: as :func:`gradcam_fast.load`.
    """
    path = Path(options.model)
    given = [name for name in ("weights", "classes", "size", "mean", "std") if getattr(options, name, None) is not None]
    if getattr(options, "crop", "auto") != "auto":
        given.append("crop")
    if given:
        raise ValueError(f"--{given[0]}: {path.name} has its own weights, classes and preprocessing; leave it out")
    model = PackagedModel(path, getattr(options, "device", None))
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
    return Network(info.title, model.eval(), preprocess, names, probabilities=info.probabilities, explain=model.explain)


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


def options_of_package(options: SimpleNamespace, network: Network) -> ExplainOptions:
    """What a package explains, as far as options name it.

    Raises:
        ValueError: the options ask for something else than the package was made for.
    """
    assert isinstance(network.model, PackagedModel)
    info, name = network.model.info, network.model.path.name
    record, made = info.record, info.record.target
    again = "export it again for another one"
    if options.layer is not None and options.layer != record.layer:
        raise ValueError(f"--layer: {name} explains {record.layer}; {again}")
    if options.method not in ("gradcam", record.method):
        raise ValueError(f"--method: {name} explains by {record.method}; {again}")
    topk = getattr(options, "topk", None)
    if made.kind == "callable":
        raise ValueError(f"{name} explains the score of a function, which is no class")
    count = made.targets or 1
    if made.kind == "input":
        if options.target is None or made.targets is not None:
            raise ValueError(f"--target: {name} explains the class that is asked for; give one")
        return ExplainOptions(find_class(options.target, network.class_names), None, options.layer, record.method)
    if options.target is not None:
        raise ValueError(f"--target: {name} explains {described(info)}; export it with --target input to choose later")
    if topk is not None and topk != count:
        raise ValueError(f"--topk: {name} explains {described(info)}; {again}")
    if made.kind == "classes" and made.targets is None:
        return ExplainOptions(made.classes[0], None, options.layer, record.method)
    return ExplainOptions(None, count, options.layer, record.method)


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
