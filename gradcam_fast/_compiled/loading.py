"""Runs a package: checks the call against what the package takes, and calls its native code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .._autocast import without_autocast
from .._capture.scores import check_target
from .._model.undo import Lock, outside_inference_mode
from ..class_names import named
from ..exceptions import IncompatiblePackage, UnreadablePackage
from ..ops.backend import kernel_for, library_path
from .archive import check_intact, check_runs_here, read_info
from .record import as_native_input

if TYPE_CHECKING:
    from torch import Tensor

    from ..explanation import Explanation
    from ..types import Images, Target
    from .record import ExplanationRecord, TensorInput

__all__ = ["PackageRunner"]


class PackageRunner:
    """Explains by a package: the runner of a :class:`gradcam_fast.compiled.CompiledExplainer`.

    Args:
        path: the file.
        device: the CUDA device to run on, such as "cuda:1"; None for the current one.
        layer_maps: whether the heatmaps are the layer's own maps.

    Raises:
        FileNotFoundError, UnreadablePackage, IncompatiblePackage: as :func:`gradcam_fast.load` says.
    """

    eager_because = None

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        layer_maps: bool = False,
    ) -> None:
        self.path = Path(path)
        self.info = read_info(self.path)
        check_intact(self.path)
        check_runs_here(self.path, self.info)
        kind = self.info.images.device.type
        on = torch.device(device or kind)
        if on.type != kind:
            raise IncompatiblePackage(f"{self.path} was made for {kind} and does not run on {on}; export it for {on}")
        if not self.info.self_contained and not kernel_for(kind):
            library_path(kind)  # says how to build a library that is missing
            raise IncompatiblePackage(
                f"{self.path} calls the compiled operator for {kind}, which does not run here (see "
                "gradcam_fast.backend()); mend that, or export the package with self_contained=True"
            )
        if layer_maps and self.info.layer_size is None:
            raise ValueError(f"{self.path} has no maps of one layer: it explains several, or no images")
        self._layer_maps = layer_maps
        # The native code waits for itself with the interpreter in its hands, so that a second thread would stop both.
        self._one_at_a_time = Lock()
        index = torch.cuda.current_device() if kind == "cuda" and on.index is None else on.index
        self._device = torch.device(kind, index) if kind == "cuda" else torch.device(kind)
        # The path as it is: torch warns of names that do not end in .pt2, but reads them.
        try:
            self._loader = torch._C._aoti.AOTIModelPackageLoader(
                str(self.path), "model", False, 1, -1 if self._device.index is None else self._device.index
            )
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise UnreadablePackage(f"{self.path} cannot be loaded ({reason}); export it again") from None

    @property
    def records(self) -> list[ExplanationRecord]:
        """What the package explains."""
        return [self.info.record]

    def __call__(self, images: Images, target: Target = None, topk: int | None = None) -> Explanation:
        """Explain a batch; see :func:`gradcam_fast.load`."""
        tensors = self._inputs(images)
        batch = next(len(tensor) for tensor, spec in zip(tensors, self._model_inputs, strict=True) if spec.of_batch)
        classes = self._classes(target, topk, batch)
        if classes is not None:
            tensors.append(classes.to(tensors[0].device))
        device = tensors[0].device.type
        with (
            self._one_at_a_time.held(),
            outside_inference_mode(),
            torch.no_grad(),
            without_autocast(device),
        ):
            results = self._loader.boxed_run(tensors)
        count = self.info.record.output_count
        explanation = self.info.record.explanation(results[:count])
        if self._layer_maps:
            maps, low, high = results[count:]
            explanation = replace(explanation, heatmap=maps, raw_min=low, raw_max=high)
        return explanation

    @property
    def _model_inputs(self) -> tuple[TensorInput, ...]:
        inputs = self.info.record.inputs
        return inputs[:-1] if self.info.record.target.kind == "input" else inputs

    def _inputs(self, images: Images) -> list[Tensor]:
        """The tensors of the model, checked, in the order and the memory layout that the native code reads."""
        specs = self._model_inputs
        at_images = self.info.record.images_at
        arguments: dict[Any, Any]
        if isinstance(images, torch.Tensor):
            arguments = {at_images: images}
        elif isinstance(images, Mapping):
            arguments = dict(images)
        elif isinstance(images, (tuple, list)):
            arguments = dict(enumerate(images))
        else:
            raise TypeError(f"images is a {type(images).__name__}; {self._takes()}")
        if set(arguments) != {spec.at for spec in specs}:
            raise ValueError(f"the inputs given are {_listed(arguments)}; {self._takes()}")
        tensors = []
        batches = set()
        for spec in specs:
            name = "images" if spec.at == at_images else f"input {spec.at!r}"
            tensor = arguments[spec.at]
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(f"{name} is a {type(tensor).__name__}; {self._takes()}")
            if spec.at == at_images and tensor.dim() == len(spec.shape) - 1:
                tensor = tensor.unsqueeze(0)
            if tensor.dtype != spec.dtype:
                raise TypeError(f"{name} has dtype {_short(tensor.dtype)}; {self._takes()}")
            if tensor.device != self._device:
                raise ValueError(f"{name} is on {tensor.device}; {self._takes()}")
            sides = spec.shape[1:] if spec.of_batch else spec.shape
            if tuple(tensor.shape[1:] if spec.of_batch else tensor.shape) != sides or tensor.dim() != len(spec.shape):
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}; {self._takes()}")
            if spec.of_batch:
                batches.add(len(tensor))
            tensors.append(as_native_input(tensor, spec))
        low, high = self.info.batch
        if len(batches) != 1 or not low <= min(batches) <= high:
            given = " and ".join(map(str, sorted(batches)))
            raise ValueError(f"the batch has {given} images; {self._takes()}")
        return tensors

    def _takes(self) -> str:
        """What the package takes, as the end of a sentence."""
        low, high = self.info.batch
        of = [f"{_short(spec.dtype)} {_shape(spec)} on {self._device}" for spec in self._model_inputs]
        if len(of) > 1 or isinstance(self.info.record.images_at, str):
            of = [f"{spec.at!r}: {text}" for spec, text in zip(self._model_inputs, of, strict=True)]
        batch = f"B = {low}" if low == high else f"B from {low} to {high}"
        return f"{self.path.name} takes {', '.join(of)}, {batch}"

    def _classes(self, target: Target, topk: int | None, batch: int) -> Tensor | None:
        """The classes that go in, (B,) or (B,K); None where the package needs none.

        Raises:
            ValueError: another choice of classes than the package was made with.
        """
        made = self.info.record.target
        if made.kind != "input":
            if target is None and (topk is None or (made.kind == "topk" and topk == made.targets)):
                return None
            explains = {
                "highest": "the highest logit",
                "topk": f"the {made.targets} highest logits",
                "classes": f"class {', '.join(map(str, made.classes))}",
                "callable": "the score of a function",
            }[made.kind]
            asked = f"target={target!r}" if topk is None else f"topk={topk}"
            raise ValueError(
                f'{asked} was given, but {self.path.name} explains {explains}; export it with target="input" to choose '
                "classes later"
            )
        wanted = "(B,)" if made.targets is None else f"(B,{made.targets})"
        if target is None or topk is not None:
            raise ValueError(f"{self.path.name} explains classes that come in; give target=, class indices {wanted}")
        if self.info.class_names and isinstance(target, (str, list, tuple)) and _has_names(target):
            target = named(target, self.info.class_names)
        checked = check_target(target, None, batch)
        if not callable(checked):
            self.info.record.check_classes(checked)
        if callable(checked):
            raise TypeError(f"target is a function; {self.path.name} takes class indices {wanted}")
        classes = (
            torch.full((batch,), checked, dtype=torch.int64, device="cpu") if isinstance(checked, int) else checked
        )
        if tuple(classes.shape[1:]) != (() if made.targets is None else (made.targets,)):
            raise ValueError(f"target has shape {tuple(classes.shape)}; {self.path.name} takes class indices {wanted}")
        return classes.contiguous()


def _has_names(target: Any) -> bool:
    return isinstance(target, str) or (isinstance(target, (list, tuple)) and any(map(_has_names, target)))


def _listed(arguments: Mapping[Any, Any]) -> str:
    return ", ".join(map(repr, arguments)) or "none"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shape(spec: TensorInput) -> str:
    sides = [str(side) for side in spec.shape]
    if spec.of_batch:
        sides[0] = "B"
    return f"({', '.join(sides)}{',' if len(sides) == 1 else ''})"
