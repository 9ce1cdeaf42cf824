"""Weight files: read without running code, and loaded into the model they fit."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["build_with_weights", "read_weights"]

# Training scripts save the weights under these names, beside optimizers, epochs and options. The first match is used.
CHECKPOINT_KEYS = ("state_dict", "model", "model_state_dict")
# An error message lists at most this many names.
LISTED_NAMES = 3


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a ``.safetensors`` file, or of any other file with ``torch.load(weights_only=True)``.

    From the checkpoint of a training run, ``{"state_dict": ...}`` or ``{"model": ...}``, only the weights are taken.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds no weights, or holds objects that could run code when loaded.
        ImportError: safetensors is needed and not installed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"weights {path}: no such file")
    content = _from_safetensors(path) if path.suffix == ".safetensors" else _from_pickle(path)
    if isinstance(content, Mapping):
        candidates = [content[name] for name in CHECKPOINT_KEYS if name in content]
        candidates += [content, *(content.values() if sum(map(_is_state_dict, content.values())) == 1 else ())]
        for candidate in candidates:
            if _is_state_dict(candidate):
                return dict(candidate)
        kind = f"a dict of {_listed([str(key) for key in content])}" if content else "an empty dict"
    else:
        kind = f"a {type(content).__name__}"
    raise ValueError(
        f"weights {path} holds {kind}, where no state_dict was found; save the weights with "
        "torch.save(model.state_dict(), FILE)"
    )


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items())
    )


def _from_safetensors(path: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f"{path} needs safetensors, which is not installed; run pip install safetensors") from error
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"weights {path} cannot be read as safetensors ({_one_line(error)})") from None


def _from_pickle(path: Path) -> Any:
    try:
        # Training scripts often save their options, an argparse.Namespace, beside the weights; it cannot run code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        classes = _unsafe_classes(path)
        reason = (
            f"it holds objects ({_listed(classes)}) that could run code when loaded"
            if classes
            else "it is damaged, was not written by torch.save, or holds objects that could run code when loaded"
        )
        raise ValueError(
            f"weights {path} is refused: {reason}; save only the weights with torch.save(model.state_dict(), FILE)"
        ) from None
    except Exception as error:  # damaged archives raise everything from EOFError to RuntimeError
        raise ValueError(
            f"weights {path} cannot be read ({type(error).__name__}: {_one_line(error)}); expected a file "
            "that torch.save wrote, or one named .safetensors"
        ) from None


def _unsafe_classes(path: Path) -> list[str]:
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # torch lists them for its current format only; the file is refused either way
        return []


def build_with_weights(
    build: Callable[[int | None], nn.Module],
    weights: Mapping[str, Tensor],
    mismatch: str,
    *,
    takes_class_count: bool = True,
    unused: tuple[str, ...] = (),
) -> nn.Module:
    """Build a model and load ``weights`` into it.

    Prefixes that wrappers put before every name (``module.``, ``model.``) are dropped. If only the number of classes
    differs, the model is built with the number that the weights have.

    Args:
        build: makes the model, for a number of classes or (None) its own number.
        weights: as :func:`read_weights` returns them.
        mismatch: how the error message begins if they do not fit; it names the weights and the model.
        takes_class_count: whether ``build`` uses the number of classes it is given.
        unused: prefixes of names that may be missing, because eval mode does not need them.

    Raises:
        ValueError: names or shapes differ; the message lists the first few.

    Example:
        >>> build = lambda classes: torch.nn.Sequential(torch.nn.Linear(2, classes or 10))
        >>> weights = {"module.0.weight": torch.ones(3, 2), "module.0.bias": torch.ones(3)}
        >>> build_with_weights(build, weights, "my weights do not fit")
        Sequential(
          (0): Linear(in_features=2, out_features=3, bias=True)
        )
    """
    model = build(None)
    weights = _without_prefixes(weights, model)
    differences = _differences(weights, model, unused)
    classes = _other_class_count(weights, model) if differences and takes_class_count else None
    if classes is not None:
        model = build(classes)
        differences = differences if _differences(weights, model, unused) else ""
    if differences:
        raise ValueError(f"{mismatch}; {differences}")
    model.load_state_dict(weights, strict=False)
    return model


def _without_prefixes(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The weights without prefixes that all their names share, removed until one of the names is the model's."""
    own = model.state_dict().keys()
    bare = dict(weights)
    while not own & bare.keys():
        if len({name.partition(".")[0] for name in bare}) != 1 or not all("." in name for name in bare):
            return dict(weights)
        bare = {name.partition(".")[2]: tensor for name, tensor in bare.items()}
    return bare


def _other_class_count(weights: Mapping[str, Tensor], model: nn.Module) -> int | None:
    changes = {
        (own.shape[:1], weights[name].shape[:1], own.shape[1:] == weights[name].shape[1:])
        for name, own in _tensors(model).items()
        if name in weights and weights[name].shape != own.shape
    }
    # The weight and bias of every head must have changed from the same number to the same other one.
    if len(changes) != 1:
        return None
    ((_, number, same_otherwise),) = changes
    return number[0] if number and same_otherwise else None


def _differences(weights: Mapping[str, Tensor], model: nn.Module, unused: tuple[str, ...]) -> str:
    own = _tensors(model)
    # Old checkpoints lack this counter, which only training reads.
    needed = [name for name in own if not name.startswith(unused) and not name.endswith("num_batches_tracked")]
    shapes = [
        f"{name} is {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    differences = {
        "missing: ": [name for name in needed if name not in weights],
        "unknown: ": [name for name in weights if name not in own],
        "": shapes,
    }
    return "; ".join(label + _listed(names) for label, names in differences.items() if names)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}


def _listed(names: list[str]) -> str:
    more = len(names) - LISTED_NAMES
    return ", ".join(names[:LISTED_NAMES]) + (f" and {more} more" if more > 0 else "")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
