"""Explanations in ``.npz`` files: arrays that numpy alone can read, without pickled objects."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import numpy
import torch

if TYPE_CHECKING:
    from torch import Tensor

    from .explanation import Explanation

__all__ = ["read_fields", "write_fields"]

_NEEDED = ("heatmap", "logits", "score", "raw_min", "raw_max", "valid")
_TENSORS = (*_NEEDED, "target", "reason_codes", "boxes")
# The version of the layout, for readers of later releases.
_VERSION = 1


def write_fields(explanation: Explanation, path: str | os.PathLike[str]) -> None:
    """Write all fields of an explanation.

    Raises:
        TypeError: the logits are no tensor.
    """
    if not isinstance(explanation.logits, torch.Tensor):
        raise TypeError(
            f"the logits are a {type(explanation.logits).__name__}, and a .npz file holds arrays; save it with "
            "torch.save(explanation, path)"
        )
    arrays: dict[str, Any] = {}
    dtypes: dict[str, str] = {}
    for name in _TENSORS:
        value: Tensor | None = getattr(explanation, name)
        if value is not None:
            value = value.detach().cpu()
            dtypes[name] = str(value.dtype).removeprefix("torch.")
            arrays[name] = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    for name, part in (explanation.subject or {}).items():
        arrays[f"subject_{name}"] = part.numpy()
    for place, photo in enumerate(explanation.photos or ()):
        arrays[f"photo_{place}"] = photo.permute(1, 2, 0).numpy()
    settings = {
        "version": _VERSION,
        "dtypes": dtypes,
        "layer": explanation.layer,
        "names": explanation.names,
        "probability_rule": explanation.probability_rule,
        "signed": explanation.signed,
        "photos": None if explanation.photos is None else len(explanation.photos),
    }
    arrays["settings"] = numpy.array(json.dumps(settings))
    with open(path, "wb") as file:
        numpy.savez_compressed(file, **arrays)


def read_fields(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields of an explanation that `write_fields` wrote.

    Raises:
        ValueError: another file.
    """
    try:
        with numpy.load(path, allow_pickle=False) as file:
            return _fields(dict(file))
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged archives raise everything from BadZipFile to EOFError
        raise ValueError(
            f"{os.fspath(path)} holds no explanation ({type(error).__name__}); give a file that Explanation.save wrote"
        ) from None


def _fields(arrays: dict[str, Any]) -> dict[str, Any]:
    settings = json.loads(str(arrays["settings"]))
    present = [name for name in _TENSORS if name in _NEEDED or name in settings["dtypes"]]
    fields: dict[str, Any] = {
        name: torch.from_numpy(arrays[name]).to(getattr(torch, settings["dtypes"][name])) for name in present
    }
    parts = [name for name in arrays if name.startswith("subject_")]
    if parts:
        fields["subject"] = {name.removeprefix("subject_"): torch.from_numpy(arrays[name]) for name in parts}
    layer, names, photos = settings["layer"], settings["names"], settings["photos"]
    if photos is not None:
        fields["photos"] = tuple(torch.from_numpy(arrays[f"photo_{i}"]).permute(2, 0, 1) for i in range(photos))
    return {
        "target": None,
        **fields,
        "layer": layer if isinstance(layer, str) else tuple(layer),
        "names": None if names is None else tuple(names),
        "probability_rule": settings["probability_rule"],
        "signed": settings["signed"],
    }
