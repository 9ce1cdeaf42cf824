"""Weight files, read without running what is in them, and put into the model they fit.

Knows nothing of which networks there are, nor of photos.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["fit", "read_weights"]

# Under these names training scripts keep the weights beside optimizers, epochs and options, the likeliest first.
WRAPPERS = ("state_dict", "model", "model_state_dict")
NAMED_IN_MESSAGES = 3


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a ``.safetensors`` file, or of any other as ``torch.load(weights_only=True)`` does.

    A checkpoint of a training run, ``{"state_dict": ...}`` or ``{"model": ...}``, is unwrapped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds more than tensors, so that reading it could run code.
        ImportError: safetensors is needed and not installed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"weights {path}: no such file")
    content = _from_safetensors(path) if path.suffix == ".safetensors" else _from_pickle(path)
    if isinstance(content, Mapping):
        candidates = [content[name] for name in WRAPPERS if name in content]
        candidates += [content, *(content.values() if sum(map(_is_state_dict, content.values())) == 1 else ())]
        for candidate in candidates:
            if _is_state_dict(candidate):
                return dict(candidate)
        found = f"a dict of {_listed([str(key) for key in content])}" if content else "an empty dict"
    else:
        found = f"a {type(content).__name__}"
    raise ValueError(
        f"weights {path} holds {found}, in which no state_dict is obvious; save torch.save(model.state_dict(), FILE)"
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
        raise ValueError(f"weights {path} cannot be read as safetensors ({_line(error)})") from None


def _from_pickle(path: Path) -> Any:
    try:
        # Training scripts keep their options beside the weights; a Namespace does nothing but hold them.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        foreign = _foreign_names(path)
        what = f"needs {_listed(foreign)}" if foreign else "is damaged or not made by torch.save, or needs more"
        raise ValueError(
            f"weights {path} is refused: to read it {what}, where only tensors are read because anything else could "
            "run code; save torch.save(model.state_dict(), FILE)"
        ) from None
    except Exception as error:  # damaged archives raise everything from EOFError to RuntimeError
        raise ValueError(
            f"weights {path} cannot be read ({type(error).__name__}: {_line(error)}); expected what torch.save wrote, "
            "or a file named .safetensors"
        ) from None


def _foreign_names(path: Path) -> list[str]:
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # it reads the current format only; the file is refused all the same
        return []


def fit(
    build: Callable[[int | None], nn.Module],
    weights: Mapping[str, Tensor],
    what: str,
    *,
    counts: bool = True,
    unused: tuple[str, ...] = (),
) -> nn.Module:
    """Build the model that ``weights`` are for, and load them.

    What wrappers put before every name (``module.``, ``model.``) is dropped. If only the number of classes
    differs, the model is built with the number that the weights have.

    Args:
        build: makes the model for a number of classes, or for its own number where that is None.
        weights: as :func:`read_weights` returns them.
        what: whose weights into what, in words, for the message.
        counts: whether ``build`` heeds a number.
        unused: beginnings of names that may be missing, because eval mode does without them.

    Raises:
        ValueError: names or shapes differ; the message has the first few.

    Example:
        >>> build = lambda classes: torch.nn.Sequential(torch.nn.Linear(2, classes or 10))
        >>> fit(build, {"module.0.weight": torch.ones(3, 2), "module.0.bias": torch.ones(3)}, "mine")
        Sequential(
          (0): Linear(in_features=2, out_features=3, bias=True)
        )
    """
    model = build(None)
    weights = _without_wrappers(weights, model)
    differences = _differences(weights, model, unused)
    classes = _other_number_of_classes(weights, model) if differences and counts else None
    if classes is not None:
        model = build(classes)
        differences = differences if _differences(weights, model, unused) else ""
    if differences:
        raise ValueError(f"{what}: the weights do not fit; {differences}")
    model.load_state_dict(weights, strict=False)
    return model


def _without_wrappers(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The weights without what stands before all their names, as far as it takes until one of them is the model's."""
    own = model.state_dict().keys()
    bare = dict(weights)
    while not own & bare.keys():
        if len({name.partition(".")[0] for name in bare}) != 1 or not all("." in name for name in bare):
            return dict(weights)
        bare = {name.partition(".")[2]: tensor for name, tensor in bare.items()}
    return bare


def _other_number_of_classes(weights: Mapping[str, Tensor], model: nn.Module) -> int | None:
    changes = {
        (own.shape[:1], weights[name].shape[:1], own.shape[1:] == weights[name].shape[1:])
        for name, own in _tensors(model).items()
        if name in weights and weights[name].shape != own.shape
    }
    # Every head, with its bias, must have gone from the one number to the other.
    if len(changes) != 1:
        return None
    ((_, number, same_otherwise),) = changes
    return number[0] if number and same_otherwise else None


def _differences(weights: Mapping[str, Tensor], model: nn.Module, unused: tuple[str, ...]) -> str:
    own = _tensors(model)
    # Old checkpoints lack the counter, which only training reads.
    needed = [name for name in own if not name.startswith(unused) and not name.endswith("num_batches_tracked")]
    shapes = [
        f"{name} is {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    found = {
        "missing: ": [name for name in needed if name not in weights],
        "unknown: ": [name for name in weights if name not in own],
        "": shapes,
    }
    return "; ".join(label + _listed(names) for label, names in found.items() if names)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}


def _listed(names: list[str]) -> str:
    more = len(names) - NAMED_IN_MESSAGES
    return ", ".join(names[:NAMED_IN_MESSAGES]) + (f" and {more} more" if more > 0 else "")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
