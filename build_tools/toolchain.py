"""Finds the compilers of this machine, and compiles each library with one command."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from .find_torch import OLDEST_TORCH, BuildProblem, NotNeeded, Torch

if TYPE_CHECKING:
    from collections.abc import Iterator

# Relative like the sources, so that the libraries contain no paths of this machine.
INCLUDE = "-Icsrc"

CUDA_ARCHITECTURES = "7.5;8.0;8.6;9.0+PTX"

# The first CUDA release whose nvidia-cuda-nvcc wheels contain nvcc; those of CUDA 12 contain ptxas only.
FIRST_RELEASE_WITH_NVCC_WHEEL = 13

# No contraction, so that all instruction sets round alike. Hidden symbols, so that no symbol of torch's headers clashes
# with those of another torch. The prefix maps below keep build paths out of messages.
COMMON_FLAGS = ("-std=c++17", "-O3", f"-DTORCH_TARGET_VERSION=0x{OLDEST_TORCH[0]:02x}{OLDEST_TORCH[1]:02x}000000000000")
CPU_FLAGS = ("-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-ffp-contract=off", "-Wall", "-Wextra")
# Without USE_CUDA the stable headers do not declare the functions that return the current stream. The device linker
# would write paths of the build into the library; with one device file it is not needed.
CUDA_FLAGS = (
    "-DUSE_CUDA",
    "-cudart=static",
    # Products are rounded as on the host, so that tests there see the same bits.
    "-fmad=false",
    "--threads=0",
    "--no-device-link",
    "-Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off",
)


def build_cpu(torch: Torch, sources: list[str], target: Path) -> dict[str, object]:
    """Compile ``sources`` into ``target``; returns what build.json records, or raises BuildProblem."""
    compiler = _cxx()
    flags = [*COMMON_FLAGS, *CPU_FLAGS, *shlex.split(os.environ.get("CXXFLAGS", ""))]
    if sys.platform == "darwin":
        link = ["-bundle"]
    else:
        link = ["-shared", "-Wl,--no-undefined", "-Wl,--exclude-libs,ALL"]
    link += shlex.split(os.environ.get("LDFLAGS", ""))
    paths = [INCLUDE, f"-fmacro-prefix-map={torch.include}/=", f"-isystem{torch.include}", f"-L{torch.lib}"]
    _run([*compiler, *flags, *link, *paths, *sources, "-ltorch_cpu", "-o", str(target)], "the C++ compiler")
    return {"compiler": _first_line([*compiler, "--version"]), "flags": flags + link}


def _cxx() -> list[str]:
    if sys.platform == "win32":
        raise BuildProblem("kernels are not built on Windows yet")
    mend = "xcode-select --install" if sys.platform == "darwin" else "apt-get install g++"
    if os.environ.get("CXX"):
        compiler = shlex.split(os.environ["CXX"])
    else:
        name = next(filter(shutil.which, ("c++", "g++", "clang++")), None)
        if name is None:
            raise BuildProblem("no C++ compiler was found: c++, g++ and clang++ are not on PATH", mend)
        compiler = [name]
    if not _first_line([*compiler, "--version"]):
        raise BuildProblem(f"the C++ compiler {shlex.join(compiler)!r} does not run", mend)
    return compiler


def build_cuda(torch: Torch, sources: list[str], target: Path) -> dict[str, object]:
    """Compile ``sources`` with nvcc into ``target``; returns what build.json records, or raises BuildProblem."""
    if torch.cuda is None:
        raise NotNeeded(f"gradcam_fast was built against torch {torch.version}, which is not a CUDA build")
    nvcc = find_nvcc(torch)
    codes, architectures = _architectures(nvcc)
    flags = [*COMMON_FLAGS, *CUDA_FLAGS, *codes]
    if sys.platform != "darwin":
        flags.append("-Xlinker=--no-undefined,--exclude-libs,ALL")
    # nvcc does not search the library folder of the toolkit's wheels.
    top = re.search(r"^#\$ TOP=(.*)$", _output([nvcc, "--dryrun", "-x", "cu", os.devnull]), re.MULTILINE)
    library_paths = [f"-L{torch.lib}", *([f"-L{top[1]}/lib"] if top else [])]
    paths = [INCLUDE, f"-isystem={torch.include}", f"-Xcompiler=-fmacro-prefix-map={torch.include}/=", *library_paths]
    _run([nvcc, "-shared", *flags, *paths, *sources, "-ltorch_cpu", "-ltorch_cuda", "-o", str(target)], "nvcc")
    return {"compiler": f"nvcc {_release(nvcc)}", "flags": flags, "architectures": architectures}


def find_nvcc(torch: Torch) -> str:
    """The path of an nvcc of the CUDA major release that ``torch`` was built for."""
    assert torch.cuda is not None
    major = torch.cuda.split(".")[0]
    others = []
    for nvcc in _nvccs(torch):
        release = _release(nvcc)
        if release and release.split(".")[0] == major:
            return nvcc
        others.append(f"{nvcc} is of CUDA {release or 'unknown'}")
    reason = f"torch {torch.version} needs an nvcc of CUDA {major}: {'; '.join(others) or 'none was found'}"
    if int(major) >= FIRST_RELEASE_WITH_NVCC_WHEEL:
        raise BuildProblem(reason, f"pip install 'cuda-toolkit[cccl,nvcc]=={torch.cuda}.*'")
    where = f"CUDA {torch.cuda} is in https://developer.nvidia.com/cuda-toolkit-archive"
    raise BuildProblem(f"{reason}; {where}", f"export CUDA_HOME=/usr/local/cuda-{torch.cuda}")


def _nvccs(torch: Torch) -> Iterator[str]:
    folders = [Path(os.environ[name], "bin") for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    on_path = shutil.which("nvcc")
    candidates = [folder / "nvcc" for folder in folders] + ([Path(on_path)] if on_path else [])
    for site in dict.fromkeys((torch.root.parent, Path(sysconfig.get_path("purelib")))):
        candidates += sorted(site.glob("nvidia/*/bin/nvcc"))
    yield from (str(nvcc) for nvcc in dict.fromkeys(candidates) if nvcc.exists())


def _release(nvcc: str) -> str | None:
    match = re.search(r"release (\d+\.\d+)", _output([nvcc, "--version"]))
    return match[1] if match else None


def _architectures(nvcc: str) -> tuple[list[str], list[str]]:
    """nvcc's options for the architectures to build for, and their names.

    They are those of the environment variables, or else those of CUDA_ARCHITECTURES that this nvcc supports.
    """
    names = ("GRADCAM_FAST_CUDA_ARCHS", "TORCH_CUDA_ARCH_LIST")
    variable = next((name for name in names if os.environ.get(name)), None)
    requested = os.environ[variable] if variable else CUDA_ARCHITECTURES
    supported = set(re.findall(r"compute_(\w+)", _output([nvcc, "--list-gpu-arch"])))
    codes: list[str] = []
    for item in re.split(r"[;,\s]+", requested.strip("; ,")):
        parts = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", item)
        if parts is None:
            raise BuildProblem(f"{variable}={requested!r} has the unknown item {item!r}; write it like '8.0;9.0+PTX'")
        number = parts[1] + parts[2]
        if number in supported:
            codes += [f"sm_{number}{parts[3]}", *([f"compute_{number}{parts[3]}"] if parts[4] else [])]
        elif variable:
            raise BuildProblem(f"{variable} names {item}, which nvcc {_release(nvcc)} does not support")
    if not variable and not any(code.startswith("compute_") for code in codes):
        codes += [code.replace("sm_", "compute_") for code in codes[-1:]]
    return [f"-gencode=arch={code.replace('sm_', 'compute_')},code={code}" for code in codes], codes


def _run(command: list[str], name: str) -> None:
    print(shlex.join(command), flush=True)
    try:
        process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    except OSError as error:
        raise BuildProblem(f"{name} could not be started: {error}") from error
    print(process.stdout, end="", flush=True)
    if process.returncode != 0:
        raise BuildProblem(f"{name} failed with exit status {process.returncode}", log=process.stdout)


def _output(command: list[str]) -> str:
    """The output of ``command``, warnings included; empty if it fails or does not exist."""
    try:
        process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    except OSError:
        return ""
    return process.stdout if process.returncode == 0 else ""


def _first_line(command: list[str]) -> str:
    return _output(command).partition("\n")[0]
