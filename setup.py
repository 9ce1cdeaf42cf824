"""Builds the kernels, and records the result in build.json. The package's metadata is in pyproject.toml.

GRADCAM_FAST_BUILD chooses: ``auto`` (all that this machine can build), ``cpu`` (no CUDA library), ``never``, or
``require`` (anything missing is an error).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import setuptools

if int(setuptools.__version__.split(".")[0]) < 77:
    # Happens without build isolation: new environments of Python 3.10 and 3.11 hold an older setuptools.
    raise SystemExit(f"setuptools {setuptools.__version__} is older than 77; run: pip install -U setuptools")

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# An isolated build runs this file without its folder on sys.path.
sys.path.insert(0, str(Path(__file__).resolve().parent))
from build_tools.find_torch import BuildProblem, NotNeeded, Torch, find_torch
from build_tools.toolchain import build_cpu, build_cuda

MODES = ("auto", "cpu", "never", "require")
MODE = os.environ.get("GRADCAM_FAST_BUILD") or "auto"
if MODE not in MODES:
    raise SystemExit(f"GRADCAM_FAST_BUILD={MODE!r} is unknown; choose one of {', '.join(MODES)}")

BUILDERS = {"cpu": build_cpu, "cuda": build_cuda}
CSRC = sorted(path.as_posix() for path in Path("csrc").rglob("*.*"))
BUILD_TOOLS = sorted(path.as_posix() for path in Path("build_tools").glob("*.py"))
SOURCES = {
    "cpu": [path for path in CSRC if path.endswith(".cpp")],
    "cuda": [path for path in CSRC if path.endswith(".cu")],
}
LIBRARY_FOLDER = Path("gradcam_fast", "_lib")


class BuildKernels(build_ext):
    """Builds the libraries, and records in build.json which were built, and why the others were not."""

    def run(self) -> None:
        target = Path(self.build_lib, LIBRARY_FOLDER)
        # Remove the libraries of former builds first: they must not be loaded by this version, even if its build fails.
        self._replace(target, None)
        if self.inplace:
            self._replace(LIBRARY_FOLDER, None)
        target.mkdir(parents=True)
        record = self._build(target)
        (target / "build.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if self.inplace:
            self._replace(LIBRARY_FOLDER, target)

    def get_outputs(self) -> list[str]:
        return [str(path) for path in sorted(Path(self.build_lib, LIBRARY_FOLDER).glob("*"))]

    def get_output_mapping(self) -> dict[str, str]:
        return {path: str(LIBRARY_FOLDER / Path(path).name) for path in self.get_outputs()} if self.inplace else {}

    def _build(self, target: Path) -> dict[str, object]:
        torch: Torch | BuildProblem
        try:
            torch = find_torch()
        except BuildProblem as problem:
            torch = problem
        libraries = {name: self._build_library(name, torch, target) for name in BUILDERS}
        torch_record = {"version": torch.version, "cuda": torch.cuda} if isinstance(torch, Torch) else None
        return {
            "version": self.distribution.get_version(),
            "mode": MODE,
            "torch": torch_record,
            "libraries": libraries,
        }

    def _build_library(self, name: str, torch: Torch | BuildProblem, target: Path) -> dict[str, object]:
        library = target / f"libgradcam_fast_{name}.so"
        is_chosen = MODE == "never" or (MODE == "cpu" and name != "cpu")
        try:
            if is_chosen:
                raise NotNeeded(f"gradcam_fast was built with GRADCAM_FAST_BUILD={MODE}", "unset GRADCAM_FAST_BUILD")
            if isinstance(torch, BuildProblem):
                raise torch
            facts = BUILDERS[name](torch, SOURCES[name], library)
        except BuildProblem as problem:
            library.unlink(missing_ok=True)
            if MODE == "require" and not isinstance(problem, NotNeeded):
                raise CompileError(f"GRADCAM_FAST_BUILD=require, but no {name} library: {problem.reason}") from problem
            print(f"gradcam_fast: no {name} library: {problem.reason}", flush=True)
            details = {"reason": problem.reason, "mend": problem.mend, "chosen": is_chosen, "log": problem.log}
            return {"file": None, **details}
        return {"file": library.name, "reason": "built", **facts}

    @staticmethod
    def _replace(folder: Path, source: Path | None) -> None:
        if folder.exists():
            shutil.rmtree(folder)
        if source is not None:
            shutil.copytree(source, folder)


class WheelForEveryPython(bdist_wheel):
    """Tags the wheel py3-none-PLATFORM, or py3-none-any without libraries: the libraries do not use Python."""

    def get_tag(self) -> tuple[str, str, str]:
        built = any(Path(self.bdist_dir or "").glob(f"{LIBRARY_FOLDER.as_posix()}/lib*"))
        return "py3", "none", super().get_tag()[2] if built else "any"


setup(
    # Source distributions include these.
    ext_modules=[
        Extension(f"gradcam_fast._lib.{name}", SOURCES[name], depends=[*CSRC, *BUILD_TOOLS]) for name in BUILDERS
    ],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": WheelForEveryPython},
)
