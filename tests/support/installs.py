"""For tests of real installs: a copy of the tree to build in, an empty environment, and running commands."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
TORCH = Path(torch.__file__).parent
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "build_tools", "csrc", "gradcam_fast")

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, (os.environ.get("CXX") or "c++", "g++", "clang++"))), reason="no C++ compiler here"
)


def environment(**changes):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GRADCAM_FAST_", "PYTHONPATH"))}
    return {**kept, "GRADCAM_FAST_BUILD": "auto", **changes}


def run(*command, cwd, ok=True, **changes):
    done = subprocess.run(command, cwd=cwd, env=environment(**changes), capture_output=True, text=True)
    output = done.stdout + done.stderr
    if "No matching distribution found for setuptools" in output:
        pytest.skip("an isolated build fetches setuptools, and no package index is reachable")
    assert (done.returncode == 0) == ok, output
    return output


def copy_of_the_tree(folder):
    folder.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("_lib", "__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def empty_environment(folder):
    """Make an environment that sees the packages of this one; returns its interpreter."""
    site, python = _new_environment(folder)
    (site / "borrowed.pth").write_text("\n".join(map(str, _sites())) + "\n")
    return python


def environment_without_nvcc(folder):
    """Make an environment with the packages of this one, except for the programs of CUDA; returns its interpreter."""
    site, python = _new_environment(folder)
    for source in reversed(_sites()):
        for path in source.iterdir():
            # pip would follow a link to the package under test, and uninstall it there.
            if path.name not in ("nvidia", "__pycache__") and path.suffix != ".pth" and "gradcam" not in path.name:
                _link(site / path.name, path)
        for path in source.glob("nvidia/*/*"):
            if path.name != "bin":
                (site / "nvidia" / path.parent.name).mkdir(parents=True, exist_ok=True)
                _link(site / path.relative_to(source), path)
    return python


def tools_folder(folder, *names):
    """Make a folder of links to the named programs of this machine, to be a PATH that holds no others."""
    folder.mkdir()
    for name in names:
        if program := shutil.which(name):
            (folder / name).symlink_to(program)
    return str(folder)


def _link(link, path):
    if not link.exists():
        link.symlink_to(path)


def _sites():
    return list(dict.fromkeys((Path(sysconfig.get_path("purelib")), TORCH.parent)))


def _new_environment(folder):
    venv.create(folder, with_pip=False, symlinks=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    # Python 3.10 has no scheme named venv.
    scheme = "venv" if "venv" in sysconfig.get_scheme_names() else "posix_prefix"
    site = Path(sysconfig.get_path("purelib", scheme, paths))
    return site, str(Path(sysconfig.get_path("scripts", scheme, paths)) / "python")


def pip(python, *arguments, cwd, **changes):
    """Install into the environment of an interpreter."""
    return run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", *arguments, cwd=cwd, **changes)


USE = """
import gradcam_fast, json, torch, warnings
maps = torch.arange(8.0).reshape(1, 2, 2, 2)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    heatmap = [gradcam_fast.cam(maps, torch.ones_like(maps), 2)[0] for _ in range(2)][0]
cpu, cuda = gradcam_fast.backend().kernels
print(json.dumps({
    "file": gradcam_fast.__file__, "heatmap": heatmap.flatten().tolist(), "fused": cpu.fused, "why": cpu.why,
    "fix": cpu.fix, "cuda": [cuda.fused, cuda.why, cuda.fix], "torch": torch.__version__,
    "warnings": [str(entry.message) for entry in caught if "gradcam_fast" in str(entry.message)],
}))
"""


def use(python, cwd):
    """Make a heatmap with the package that is installed there; returns it with what the package says of its kernels."""
    return json.loads(run(python, "-c", USE, cwd=cwd).splitlines()[-1])


def build_wheel(tree, folder, **changes):
    """Build a wheel of ``tree`` in ``folder``; returns its path."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(tree)]
    run(*command, cwd=tree, **changes)
    (wheel,) = folder.glob("*.whl")
    return wheel
