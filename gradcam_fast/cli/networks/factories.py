"""Models that a function of the user's own makes.

Knows nothing of weights or of what the models are for.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .architectures import Architecture, number_of_classes

__all__ = ["from_factory"]


def from_factory(name: str) -> Architecture:
    """``package.module:factory``, a function or class without arguments that makes a model; also of the current folder.

    Raises:
        ImportError: the module, or what it imports, is not there.
        ValueError: the module has no such function.
    """
    module_name, _, factory_name = name.partition(":")
    with _current_folder_first():
        try:
            factory: Any = importlib.import_module(module_name)
        except ImportError as error:
            raise ImportError(f"model {name!r}: importing {module_name} failed ({error})") from error
    for part in factory_name.split("."):
        factory = getattr(factory, part, None)
    if not callable(factory):
        raise ValueError(f"model {name!r}: {module_name} has no function {factory_name!r}")
    counts = _counts(name, factory)

    def build(classes: int | None) -> nn.Module:
        with _current_folder_first():
            model = factory(**number_of_classes(classes))
        if not isinstance(model, nn.Module):
            raise TypeError(f"model {name!r}: {factory_name} returned a {type(model).__name__}; expected an nn.Module")
        return model

    return Architecture(title=name, build=build, counts=counts, imagenet=False, complete=True)


def _counts(name: str, factory: Callable[..., Any]) -> bool:
    """Whether the factory, which must need no arguments, takes a number of classes."""
    try:
        signature = inspect.signature(factory)
    except ValueError:  # of some that are written in C there is none
        return False
    try:
        signature.bind()
    except TypeError as error:
        raise ValueError(f"model {name!r}: {error}; give a function that needs no arguments") from None
    return "num_classes" in signature.parameters


@contextmanager
def _current_folder_first() -> Iterator[None]:
    # As `python -m` has it; only while the user's own code is imported or run.
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
