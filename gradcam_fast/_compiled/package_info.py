"""What a package holds besides native code: how it explains, what it takes, and where it runs; as text in the package.

Programs in C++ read the same table of texts with ``AOTIModelPackageLoader::get_metadata()``. Every entry is JSON, but
``class_names``, which has one name a line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from .record import ExplanationRecord, TensorInput, TracedTarget

__all__ = ["FORMAT", "PackageInfo"]

FORMAT = 1
"""The version of the table of texts; a package with a higher number is refused."""

_TENSOR = "tensor"
_CONTAINERS = {"list": list, "tuple": tuple, "dict": dict}


@dataclass(frozen=True)
class PackageInfo:
    """What an exported explanation does, and where it runs.

    Attributes:
        record: layer, method, size, target, inputs and batch, as traced.
        title: the name of the network, for messages.
        class_names: the name of each logit; empty if unknown.
        preprocessing: how photos become the model's input, as plain values; None if unknown.
        probabilities: what the outputs are; see :func:`gradcam_fast.probabilities.known_rule`.
        layer_size: (h,w) of the layer's own maps, which the package returns as well; None if it has none.
        self_contained: whether the package runs without the compiled operator of gradcam_fast.
        gradcam_fast: the version that made the package.
        torch: the release that made it, and the only one that loads it.
        instruction_set: of the processor that made it, by torch's name, such as ``AVX512``; an older one cannot run it.
    """

    record: ExplanationRecord
    title: str
    class_names: tuple[str, ...]
    preprocessing: Mapping[str, Any] | None
    probabilities: str | None
    layer_size: tuple[int, ...] | None
    self_contained: bool
    gradcam_fast: str
    torch: str
    instruction_set: str

    @property
    def images(self) -> TensorInput:
        """The images among the inputs: their sides, dtype and device."""
        return next(tensor for tensor in self.record.inputs if tensor.at == self.record.images_at)

    @property
    def batch(self) -> tuple[int, int]:
        """The smallest and the largest number of images."""
        low, high = self.record.batch
        assert high is not None  # export() sets it
        return low, high

    def to_texts(self) -> dict[str, str]:
        """The table that the package holds."""
        record = {name: value for name, value in vars(self.record).items() if name != "logit_tensors"}
        record["target"] = asdict(self.record.target)
        record["inputs"] = [
            {**vars(tensor), "dtype": str(tensor.dtype).removeprefix("torch."), "device": tensor.device.type}
            for tensor in self.record.inputs
        ]
        record["logits"] = _structure(self.record.logits)
        values = {"format": FORMAT, **record, **{name: getattr(self, name) for name in _OWN}}
        texts = {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
        texts["class_names"] = "\n".join(" ".join(name.split()) for name in self.class_names)
        return texts

    @classmethod
    def from_texts(cls, texts: Mapping[str, str]) -> PackageInfo:
        """Read what :meth:`to_texts` made.

        Raises:
            KeyError, ValueError, TypeError, AttributeError, RuntimeError: the texts are not such a table.
        """
        names = texts["class_names"]
        read = {name: json.loads(texts[name]) for name in (*_OF_RECORD, *_OWN) if name != "class_names"}
        inputs = tuple(
            TensorInput(
                **{
                    **tensor,
                    "shape": tuple(tensor["shape"]),
                    "dtype": getattr(torch, tensor["dtype"]),
                    "device": torch.device(tensor["device"]),
                }
            )
            for tensor in read["inputs"]
        )
        target = TracedTarget(**{**read["target"], "classes": tuple(read["target"]["classes"])})
        logits = _from_structure(read["logits"])
        record = ExplanationRecord(
            **{name: _as_tuple(read[name]) for name in _OF_RECORD if name not in ("target", "inputs", "logits")},
            target=target,
            inputs=inputs,
            logits=logits,
            logit_tensors=_count_tensors(read["logits"]),
        )
        own = {name: _as_tuple(read[name]) for name in _OWN if name != "class_names"}
        return cls(record=record, class_names=tuple(names.split("\n")) if names else (), **own)


_OWN = tuple(field.name for field in fields(PackageInfo) if field.name != "record")
_OF_RECORD = tuple(field.name for field in fields(ExplanationRecord) if field.name != "logit_tensors")


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _structure(output: Any) -> Any:
    """The containers of an output as plain values.

    Raises:
        TypeError: a container of another kind than tuple, list and dict, whose class the reader may not have.
    """
    if isinstance(output, torch.Tensor) or output is None:
        return None if output is None else _TENSOR
    for name, kind in _CONTAINERS.items():
        if type(output) is kind:
            members = output.items() if kind is dict else enumerate(output)
            return {name: [[key, _structure(member)] for key, member in members]}
    raise TypeError(
        f"the model returns a {type(output).__name__}, which a package cannot return; pick the logits with output=..."
    )


def _from_structure(structure: Any) -> Any:
    if structure is None or structure == _TENSOR:
        return None if structure is None else torch.empty(0)
    ((name, members),) = structure.items()
    values = {key: _from_structure(member) for key, member in members}
    return values if name == "dict" else _CONTAINERS[name](values.values())


def _count_tensors(structure: Any) -> int:
    """How many tensors the containers hold."""
    if structure is None or structure == _TENSOR:
        return int(structure is not None)
    ((_, members),) = structure.items()
    return sum(_count_tensors(member) for _, member in members)
