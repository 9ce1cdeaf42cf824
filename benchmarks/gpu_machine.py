"""The environment of a measurement: machine, versions, settings, commit. Contains no host name and no path."""

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
    properties = device.properties
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cache_bytes": properties.L2_cache_size,
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
    """PyTorch's own defaults, which nothing here changes; they decide how precisely float32 is multiplied."""
    return {
        "tf32_in_convolutions": torch.backends.cudnn.allow_tf32,
        "tf32_in_matrix_products": torch.backends.cuda.matmul.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }


def commit(given: str | None) -> dict[str, Any]:
    """The commit, and whether files differ from it; None where git cannot tell.

    ``given`` is for a machine without the repository: the output of ``git rev-parse HEAD``, with -dirty appended if
    files differ.
    """
    if given is not None:
        return {"commit": given.removesuffix("-dirty"), "dirty": given.endswith("-dirty")}
    head = _output("git", "-C", str(HERE), "rev-parse", "HEAD")
    changes = _output("git", "-C", str(HERE), "status", "--porcelain")
    return {"commit": head, "dirty": None if head is None or changes is None else changes != ""}


def without_paths(text: object) -> str:
    """The first 120 characters of a message's first line, without the folders in it."""
    lines = str(text).strip().splitlines() or [""]
    return re.sub(r"(?:/[^\s/:'\"]+)+/", "", lines[0])[:120]


def reason(error: Exception) -> str:
    """Why something was not measured, as the report shows it."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    message = without_paths(error)
    return (
        message
        if isinstance(error, NotMeasured | NotImplementedError | ImportError)
        else f"{type(error).__name__}: {message}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _driver() -> str | None:
    output = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return output.splitlines()[0] if output else None


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
