"""Loads the compiled libraries, and reports which kernels run; for a missing kernel, why and the command to get it.

``setup.py`` records in ``_lib/build.json`` what it built, and why it could not build the rest.
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

from ..exceptions import LibraryMissing

__all__ = ["Backend", "Kernel", "backend", "kernel_for", "library_path", "load", "warn_if_reference"]

CHOICES = ("auto", "reference")
DISPATCH_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
OPERATORS = {"cpu": ("cam", "skinny_mm"), "cuda": ("cam",)}
LIBRARY_FOLDER = Path(__file__).parents[1] / "_lib"

_lock = threading.Lock()
_report: Backend | None = None
# Both are read in every call, so they are plain dictionaries, which torch.compile can trace. By device type: whether
# its kernel is loaded; the warning to give before the reference first runs there.
_fused: dict[str, bool] = {}
_pending_warnings: dict[str, str] = {}


@dataclass(frozen=True)
class Kernel:
    """What runs the op on one type of device.

    Attributes:
        device: "cpu" or "cuda".
        fused: whether the fused kernel runs; otherwise the PyTorch reference does.
        why: the reason, as part of a sentence.
        fix: the shell command that makes the fused kernel run; None if there is none.
        chosen: whether the user asked for the reference by an environment variable.
    """

    device: str
    fused: bool
    why: str
    fix: str | None = None
    chosen: bool = False

    def __str__(self) -> str:
        return repr(self)

    def __repr__(self) -> str:
        line = f"{self.device:<5} {'fused' if self.fused else 'reference'}: {self.why}"
        return line if self.fix is None else f"{line}\n      to fix this, run: {self.fix}"


@dataclass(frozen=True)
class Backend:
    """What runs the op on every type of device; ``str()`` gives a report to read.

    Attributes:
        kernels: one for the CPU and one for CUDA.
        torch: version of the torch that is imported.
        built_against: version of the torch whose headers the libraries were compiled with; None without libraries.
    """

    kernels: tuple[Kernel, ...]
    torch: str
    built_against: str | None

    def __str__(self) -> str:
        return repr(self)

    def __repr__(self) -> str:
        """The report, as a notebook or an interactive session shows it."""
        built = f"libraries built against torch {self.built_against}" if self.built_against else "no libraries built"
        return "\n".join([f"gradcam_fast on torch {self.torch}; {built}", *map(str, self.kernels)])


def backend() -> Backend:
    """Report which kernels were built and will run; for a missing kernel, the reason and the command to get it.

    Returns:
        One :class:`Kernel` for the CPU and one for CUDA, and the versions of torch; print it to read it.

    Raises:
        ValueError: the environment variable GRADCAM_FAST_BACKEND is neither empty, "auto" nor "reference".

    Example:
        >>> import gradcam_fast
        >>> report = gradcam_fast.backend()
        >>> [kernel.device for kernel in report.kernels]
        ['cpu', 'cuda']
        >>> str(report).splitlines()[0].startswith("gradcam_fast on torch")
        True
    """
    return load()


def library_path(device: str = "cpu") -> Path:
    """The file of the compiled operator, for programs that load it without this package, such as those in C++.

    ``torch.ops.load_library(path)`` or ``dlopen`` registers the operator that explanations in a package
    (:func:`gradcam_fast.export`) call.

    Args:
        device: "cpu" or "cuda". A program on a CUDA device loads the library for the CPU, too: it holds the
            operator's signature.

    Raises:
        ValueError: another device.
        gradcam_fast.exceptions.LibraryMissing: the library was not built; the message says why, and how to build it.

    Example:
        >>> import gradcam_fast
        >>> gradcam_fast.library_path("cpu").name
        'libgradcam_fast_cpu.so'
    """
    if device not in DISPATCH_KEYS:
        raise ValueError(f"device={device!r} is unknown; choose one of {', '.join(map(repr, DISPATCH_KEYS))}")
    library = _build_record().get("libraries", {}).get(device)
    if library is None:
        raise LibraryMissing(device, "gradcam_fast was not built", _reinstall())
    if library["file"] is None:
        raise LibraryMissing(device, library["reason"], _build_command(library))
    path = LIBRARY_FOLDER / library["file"]
    if not path.is_file():
        raise LibraryMissing(device, f"{path} is gone", _reinstall())
    return path


def kernel_for(device_type: str) -> bool:
    """Tell whether the fused kernel runs on ``device_type`` ("cpu", "cuda", ...); False before :func:`load`."""
    return _fused.get(device_type, False)


def warn_if_reference(device_type: str) -> None:
    """Warn once per process that the slower reference runs on ``device_type`` although a kernel could be built."""
    if device_type in _pending_warnings:
        message = _pending_warnings[device_type]
        _pending_warnings.clear()
        warnings.warn(message, RuntimeWarning, stacklevel=3)


# torch.compile cannot trace a warning. With this attribute it calls the function once, while it traces. The decorator
# torch.compiler.assume_constant_result sets the same attribute, but imports the whole compiler, which takes a second.
warn_if_reference._dynamo_marked_constant = True  # type: ignore[attr-defined]


def load() -> Backend:
    """Load the libraries once per process and return the report, which also says why a library failed to load.

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
            _pending_warnings.update(
                {kernel.device: _warning(kernel) for kernel in kernels if kernel.fix and not kernel.chosen}
            )
            any_built = any(library["file"] for library in record.get("libraries", {}).values())
            _report = Backend(kernels, str(torch.__version__), record["torch"]["version"] if any_built else None)
        return _report


def _warning(kernel: Kernel) -> str:
    return (
        f"gradcam_fast runs its slower PyTorch reference on {kernel.device}: {kernel.why}."
        f" The results are the same. To fix this, run: {kernel.fix}"
    )


def _build_record() -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((LIBRARY_FOLDER / "build.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record


def _load_kernel(device: str, record: dict[str, Any], choice: str) -> Kernel:
    if choice == "reference":
        return Kernel(device, False, "GRADCAM_FAST_BACKEND=reference is set", "unset GRADCAM_FAST_BACKEND", True)
    if device == "cuda" and torch.version.cuda is None:
        return Kernel(device, False, f"torch {torch.__version__} is not a CUDA build")
    return _load_library(device, record)


def _load_library(device: str, record: dict[str, Any]) -> Kernel:
    library = record.get("libraries", {}).get(device)
    if library is None:
        return Kernel(device, False, "gradcam_fast was not built", _reinstall())
    if library["file"] is None:
        return Kernel(device, False, library["reason"], _build_command(library), library["chosen"])
    built_for, runs_on = (record["torch"]["cuda"] or "").split(".")[0], (torch.version.cuda or "").split(".")[0]
    if device == "cuda" and built_for != runs_on:
        why = f"its library was built for CUDA {built_for}, but torch uses CUDA {runs_on}"
        return Kernel(device, False, why, _reinstall())
    try:
        torch.ops.load_library(LIBRARY_FOLDER / library["file"])
    except Exception as error:
        return Kernel(device, False, f"{library['file']} does not load: {error}", _reinstall())
    if missing := [name for name in OPERATORS[device] if not _has_kernel(name, device)]:
        why = f"{library['file']} is loaded, but registers no kernel for {', '.join(missing)}"
        return Kernel(device, False, why, _reinstall())
    return Kernel(
        device, True, f"{library['file']} is loaded{_instruction_set(device, LIBRARY_FOLDER / library['file'])}"
    )


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


def _build_command(library: dict[str, Any]) -> str:
    """The command that builds a library which setup.py could not build."""
    first_step = f"{library['mend']} && " if library["mend"] else ""
    # Under "require" a failed compilation shows all of the compiler's output.
    verbose = "GRADCAM_FAST_BUILD=require " if library["log"] else ""
    return first_step + verbose + _reinstall()


def _reinstall() -> str:
    """The command that builds the package again from where it was installed from."""
    command = "pip install --force-reinstall --no-deps"
    checkout = Path(__file__).parents[2]
    if (checkout / "setup.py").exists():
        return f"{command} -e {shlex.quote(str(checkout))}"
    try:
        origin = json.loads(distribution("gradcam-fast").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        origin = {}
    url = origin.get("url", "")
    if "vcs_info" in origin:
        return f"{command} {origin['vcs_info']['vcs']}+{url}@{origin['vcs_info']['commit_id']}"
    if "dir_info" in origin:
        return f"{command} {shlex.quote(unquote(urlsplit(url).path))}"
    return f"{command} --no-cache-dir --no-binary gradcam-fast gradcam-fast"
