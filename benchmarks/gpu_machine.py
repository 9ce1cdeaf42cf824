"""What the numbers were measured on and with: the machine, the versions, the settings, the commit.

Names no host and no path. Knows nothing of what is measured.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch
from gpu_device import Cuda, Device
from gpu_timing import NotMeasured

import gradcam_fast

HERE = Path(__file__).parent
PACKAGES = ("torchvision", "triton", "grad-cam", "torchcam", "captum")


def machine(device: Device) -> dict[str, Any]:
    host = {"cpu": _processor(), "cpu_cores": os.cpu_count(), "system": platform.system()}
    if not isinstance(device, Cuda):
        return host
    found = device.properties
    return {
        "gpu": found.name,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory_bytes": found.total_memory,
        "cache_bytes": found.L2_cache_size,
        "driver": _driver(),
        **host,
    }


def versions() -> dict[str, Any]:
    report = gradcam_fast.backend()
    kernels = [f"{k.device} {'fused' if k.fused else 'reference'}: {without_paths(k.why)}" for k in report.kernels]
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **{package: _version(package) for package in PACKAGES},
        "gradcam_fast": gradcam_fast.__version__,
        "built_against_torch": report.built_against,
        "backend": kernels,
    }


def settings() -> dict[str, bool]:
    """PyTorch's own defaults, which nothing here changes: they decide how float32 is multiplied."""
    return {
        "tf32_in_convolutions": torch.backends.cudnn.allow_tf32,
        "tf32_in_matrix_products": torch.backends.cuda.matmul.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }


def commit(given: str | None) -> dict[str, Any]:
    """The commit and whether files differ from it; None where nobody knows.

    ``given`` is for a machine without the repository: as ``git rev-parse HEAD`` prints it, and -dirty if files differ.
    """
    if given is not None:
        return {"commit": given.removesuffix("-dirty"), "dirty": given.endswith("-dirty")}
    found = _output("git", "-C", str(HERE), "rev-parse", "HEAD")
    changes = _output("git", "-C", str(HERE), "status", "--porcelain")
    return {"commit": found, "dirty": None if found is None or changes is None else changes != ""}


def without_paths(text: object) -> str:
    """The first line of a message, without the folders in it, and no longer than one reads."""
    lines = str(text).strip().splitlines() or [""]
    return re.sub(r"(?:/[^\s/:'\"]+)+/", "", lines[0])[:120]


def reason(error: Exception) -> str:
    """Why something was not measured, in the words of the report."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    says = without_paths(error)
    return (
        says
        if isinstance(error, NotMeasured | NotImplementedError | ImportError)
        else f"{type(error).__name__}: {says}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _driver() -> str | None:
    found = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return found.splitlines()[0] if found else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
