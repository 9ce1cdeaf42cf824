"""Names of the mirrored library: puts it into ``sys.modules``, and says what is nearest to a name it does not have."""

from __future__ import annotations

import difflib
import pkgutil
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["install", "missing_name"]

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
    for module in pkgutil.walk_packages(package.__path__, f"{_ROOM}."):
        sys.modules[_LIBRARY + module.name.removeprefix(_ROOM)] = import_module(module.name)
    sys.modules[_LIBRARY] = package


def missing_name(package: ModuleType, name: str) -> str:
    """A sentence about a name that a mirrored package does not have, with the nearest that it has."""
    modules = [module.name for module in pkgutil.iter_modules(package.__path__)]
    present = {known.lower(): known for known in [*modules, *vars(package).get("__all__", ())]}
    nearest = difflib.get_close_matches(name.lower(), present, n=3, cutoff=0.3) or sorted(present)[:3]
    return (
        f"{package.__name__} has no {name!r}; nearest: {', '.join(repr(present[near]) for near in nearest)} "
        "(docs/from-pytorch-grad-cam.md lists what is there)"
    )


class _MissingModules(MetaPathFinder):
    """Importer of last resort: refuses modules that a mirrored package does not have, in a sentence.

    ``from package import name`` asks for a module, too, if the package has no such name.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        parent, _, missing = name.rpartition(".")
        package = sys.modules.get(parent)
        if package is not None and f"{package.__name__}.".startswith(f"{_ROOM}.") and hasattr(package, "__path__"):
            raise ImportError(missing_name(package, missing), name=name)
        return None


sys.meta_path.append(_MissingModules())
