"""Names of the mirrored library: puts it into ``sys.modules``, and says what is nearest to a name it does not have."""

from __future__ import annotations

import difflib
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["install", "say_what_is_nearest"]

_ROOM = f"{__package__}.pytorch_grad_cam"
_LIBRARY = "pytorch_grad_cam"


def install() -> None:
    """Put ``gradcam_fast.compat.pytorch_grad_cam`` into ``sys.modules`` as ``pytorch_grad_cam``, with its submodules.

    From then on ``import pytorch_grad_cam`` anywhere in this process takes it from gradcam_fast, also in packages that
    cannot be edited. Call it before any of them is imported; calling it again does nothing.

    Raises:
        RuntimeError: pytorch-grad-cam itself has already been imported.

    Example:
        >>> import gradcam_fast
        >>> gradcam_fast.compat.install()  # doctest: +SKIP
        >>> from pytorch_grad_cam import GradCAM  # doctest: +SKIP
    """
    package = import_module(_ROOM)
    loaded = sys.modules.get(_LIBRARY)
    if loaded is package:
        return
    if loaded is not None or any(name.startswith(f"{_LIBRARY}.") for name in sys.modules):
        raise RuntimeError(
            f"{_LIBRARY} is already imported, from {getattr(loaded, '__file__', 'elsewhere')}; call "
            "gradcam_fast.compat.install() before the first import of anything that uses it"
        )
    for module in _modules_of(package):
        sys.modules[_LIBRARY + module.__name__.removeprefix(_ROOM)] = module


def say_what_is_nearest(package: ModuleType) -> None:
    """Let a package and all its modules answer for names that they do not have with the nearest that they have."""
    for module in _modules_of(package):
        module.__class__ = _Mirrored
        # `from module import name` looks for a module of that name, and so asks the importer below, in packages only.
        vars(module).setdefault("__path__", [])


class _Mirrored(ModuleType):
    """A module of the mirrored library."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(_missing_name(self, name))


def _modules_of(package: ModuleType) -> Iterator[ModuleType]:
    yield package
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        yield import_module(module.name)


def _missing_name(module: ModuleType, name: str) -> str:
    """A sentence about a name that a mirrored module does not have, with the nearest that it has."""
    modules = [found.name for found in pkgutil.iter_modules(module.__path__)]
    present = {known.lower(): known for known in [*modules, *vars(module).get("__all__", ())]}
    nearest = difflib.get_close_matches(name.lower(), present, n=3, cutoff=0.3) or sorted(present)[:3]
    return (
        f"{module.__name__} has no {name!r}; nearest: {', '.join(repr(present[near]) for near in nearest)} "
        "(docs/from-pytorch-grad-cam.md lists what is there)"
    )


class _MissingModules(MetaPathFinder):
    """Importer of last resort: refuses modules and names that a mirrored module does not have, in a sentence."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        parent, _, missing = name.rpartition(".")
        module = sys.modules.get(parent)
        if isinstance(module, _Mirrored):
            raise ImportError(_missing_name(module, missing), name=name)
        return None


sys.meta_path.append(_MissingModules())
