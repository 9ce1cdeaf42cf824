"""Finds the torch to build against, without importing it.

pip's isolated builds hide the installed packages from this process, so new interpreters are started to find torch.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

OLDEST_TORCH = (2, 10)
# How many lines of the compiler's output build.json keeps.
LOG_LINES = 20


class BuildProblem(Exception):
    """Why a library could not be built, the command that fixes it (if known), and the end of the compiler's output."""

    def __init__(self, reason: str, mend: str | None = None, log: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.mend = mend
        self.log = log.strip().splitlines()[-LOG_LINES:]


class NotNeeded(BuildProblem):
    """The library cannot be used with this torch, so even GRADCAM_FAST_BUILD=require accepts that it is missing."""


@dataclass(frozen=True)
class Torch:
    """An installed torch; ``cuda`` is the CUDA release it was built for, or None."""

    root: Path
    version: str
    cuda: str | None

    @property
    def include(self) -> Path:
        return self.root / "include"

    @property
    def lib(self) -> Path:
        return self.root / "lib"


def find_torch() -> Torch:
    """The torch of this interpreter, or of the activated environment.

    Raises:
        BuildProblem: there is none, or it is too old or without C++ headers.
    """
    install = "pip install 'torch>={}.{}'".format(*OLDEST_TORCH)
    root = next(_torch_roots(), None)
    if root is None:
        raise BuildProblem("no torch was found to build against", install)
    text = (root / "version.py").read_text(encoding="utf-8")
    version = re.search(r"__version__\s*=\s*['\"]([^'\"]+)", text)
    cuda = re.search(r"^cuda\b[^=]*=\s*['\"]([^'\"]+)", text, re.MULTILINE)
    torch = Torch(root, version[1] if version else "unknown", cuda[1] if cuda else None)
    release = re.match(r"(\d+)\.(\d+)", torch.version)
    if release is None or (int(release[1]), int(release[2])) < OLDEST_TORCH:
        raise BuildProblem("torch {} is older than {}.{}".format(torch.version, *OLDEST_TORCH), install)
    if not (torch.include / "torch/csrc/stable/library.h").exists():
        raise BuildProblem(f"torch {torch.version} is installed without its C++ headers", install)
    return torch


def _torch_roots() -> Iterator[Path]:
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent
    # pip isolates a build by setting these variables; without them an interpreter sees its installed packages.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONNOUSERSITE")}
    program = "import importlib.util as u; s = u.find_spec('torch'); print(s and s.origin or '')"
    interpreters = [Path(sys.executable)]
    if "VIRTUAL_ENV" in os.environ:
        interpreters.append(Path(os.environ["VIRTUAL_ENV"], "bin", "python"))
    for interpreter in interpreters:
        if interpreter.exists():
            answer = subprocess.run([interpreter, "-c", program], env=environment, capture_output=True, text=True)
            if answer.stdout.strip():
                yield Path(answer.stdout.strip()).parent
