"""Which kernels there are on this machine: loads the libraries, and says what is missing, why, and what to type.

Knows neither what the kernels compute nor how they were built; ``setup.py`` left that in ``_lib/build.json``.
"""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import threading
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import torch

__all__ = ["Backend", "Kernel", "backend", "kernel_for", "load", "warn_if_reference"]

CHOICES = ("auto", "reference")
DISPATCH_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
OPERATORS = {"cpu": ("cam", "skinny_mm"), "cuda": ("cam",)}
LIBRARIES = Path(__file__).parents[1] / "_lib"

_lock = threading.Lock()
_report: Backend | None = None
# What is asked on every call stands ready in plain dictionaries, which torch.compile can trace.
_fused: dict[str, bool] = {}
_due: dict[str, str] = {}


@dataclass(frozen=True)
class Kernel:
    """What runs on one kind of device: ``fused`` or the reference, why, and the command that mends it, if any."""

    device: str
    fused: bool
    why: str
    mend: str | None = None
    chosen: bool = False

    def __str__(self) -> str:
        line = f"{self.device:<5} {'fused' if self.fused else 'reference'}: {self.why}"
        return line if self.mend is None else f"{line}\n      to mend it, type: {self.mend}"


@dataclass(frozen=True)
class Backend:
    """What will run on each kind of device, the torch that runs, and the torch the libraries were built against."""

    kernels: tuple[Kernel, ...]
    torch: str
    built_against: str | None

    def __str__(self) -> str:
        built = f"libraries built against torch {self.built_against}" if self.built_against else "no libraries built"
        return "\n".join([f"gradcam_fast on torch {self.torch}; {built}", *map(str, self.kernels)])


def backend() -> Backend:
    """Report what was built and what will run; if a kernel is missing, why, and the command that mends it.

    Example:
        >>> import gradcam_fast
        >>> report = gradcam_fast.backend()
        >>> [kernel.device for kernel in report.kernels]
        ['cpu', 'cuda']
        >>> str(report).splitlines()[0].startswith("gradcam_fast on torch")
        True
    """
    return load()


def kernel_for(device_type: str) -> bool:
    """Whether the fused kernel runs on ``device_type`` ("cpu", "cuda", ...); false until :func:`load` was called."""
    return _fused.get(device_type, False)


def warn_if_reference(device_type: str) -> None:
    """Warn once per process if the reference runs on ``device_type`` although a kernel could be there."""
    if device_type in _due:
        message = _due[device_type]
        _due.clear()
        warnings.warn(message, RuntimeWarning, stacklevel=3)


# A warning cannot be traced; marked so, torch.compile calls this function while it traces, and warns then. The mark is
# that of torch.compiler.assume_constant_result, which imports the whole compiler, for a second and for good.
warn_if_reference._dynamo_marked_constant = True  # type: ignore[attr-defined]


def load() -> Backend:
    """Load the libraries once per process and return the report; a library that fails to load becomes a reason.

    Raises:
        ValueError: the environment variable GRADCAM_FAST_BACKEND is neither empty, "auto" nor "reference".
    """
    global _report
    with _lock:
        if _report is None:
            choice = os.environ.get("GRADCAM_FAST_BACKEND") or "auto"
            if choice not in CHOICES:
                raise ValueError(f"GRADCAM_FAST_BACKEND={choice!r} is unknown; choose one of {', '.join(CHOICES)}")
            record = _build_record()
            kernels = tuple(_load_kernel(device, record, choice) for device in DISPATCH_KEYS)
            _fused.update({kernel.device: kernel.fused for kernel in kernels})
            _due.update({kernel.device: _warning(kernel) for kernel in kernels if kernel.mend and not kernel.chosen})
            built = any(library["file"] for library in record.get("libraries", {}).values())
            _report = Backend(kernels, str(torch.__version__), record["torch"]["version"] if built else None)
        return _report


def _warning(kernel: Kernel) -> str:
    return (
        f"gradcam_fast runs its slower PyTorch reference on {kernel.device}: {kernel.why}."
        f" The results are the same. To mend it, type: {kernel.mend}"
    )


def _build_record() -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((LIBRARIES / "build.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record


def _load_kernel(device: str, record: dict[str, Any], choice: str) -> Kernel:
    if choice == "reference":
        return Kernel(device, False, "GRADCAM_FAST_BACKEND=reference asks for it", "unset GRADCAM_FAST_BACKEND", True)
    if device == "cuda" and torch.version.cuda is None:
        return Kernel(device, False, f"torch {torch.__version__} is not a CUDA build")
    return _load_library(device, record)


def _load_library(device: str, record: dict[str, Any]) -> Kernel:
    library = record.get("libraries", {}).get(device)
    if library is None:
        return Kernel(device, False, "gradcam_fast was not built", _reinstall())
    if library["file"] is None:
        first = f"{library['mend']} && " if library["mend"] else ""
        loud = "GRADCAM_FAST_BUILD=require " if library["log"] else ""
        return Kernel(device, False, library["reason"], first + loud + _reinstall(), library["chosen"])
    built_for, runs_on = (record["torch"]["cuda"] or "").split(".")[0], (torch.version.cuda or "").split(".")[0]
    if device == "cuda" and built_for != runs_on:
        why = f"its library was built for CUDA {built_for}, and torch runs CUDA {runs_on}"
        return Kernel(device, False, why, _reinstall())
    try:
        torch.ops.load_library(LIBRARIES / library["file"])
    except Exception as error:
        return Kernel(device, False, f"{library['file']} does not load: {error}", _reinstall())
    if missing := [name for name in OPERATORS[device] if not _has_kernel(name, device)]:
        why = f"{library['file']} is loaded and registers no kernel for {', '.join(missing)}"
        return Kernel(device, False, why, _reinstall())
    return Kernel(device, True, f"{library['file']} is loaded{_instruction_set(device, LIBRARIES / library['file'])}")


def _instruction_set(device: str, library: Path) -> str:
    if device != "cpu":
        return ""
    name = ctypes.CDLL(str(library)).gradcam_fast_instruction_set
    name.restype = ctypes.c_char_p
    return f" and uses {name().decode()}"


def _has_kernel(name: str, device: str) -> bool:
    operator = getattr(torch.ops.gradcam_fast, name, None)
    key = getattr(torch._C.DispatchKey, DISPATCH_KEYS[device])
    return operator is not None and bool(operator.default.has_kernel_for_dispatch_key(key))


def _reinstall() -> str:
    """The command that builds the package again from wherever it came."""
    again = "pip install --force-reinstall --no-deps"
    checkout = Path(__file__).parents[2]
    if (checkout / "setup.py").exists():
        return f"{again} -e {shlex.quote(str(checkout))}"
    try:
        origin = json.loads(distribution("gradcam-fast").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        origin = {}
    url = origin.get("url", "")
    if "vcs_info" in origin:
        return f"{again} {origin['vcs_info']['vcs']}+{url}@{origin['vcs_info']['commit_id']}"
    if "dir_info" in origin:
        return f"{again} {shlex.quote(unquote(urlsplit(url).path))}"
    return f"{again} --no-cache-dir --no-binary gradcam-fast gradcam-fast"
