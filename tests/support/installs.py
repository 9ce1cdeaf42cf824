"""For tests of real installs: a copy of the tree to build in, an empty environment, and running commands."""

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
    venv.create(folder, with_pip=False, symlinks=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    # Python 3.10 has no scheme named venv.
    scheme = "venv" if "venv" in sysconfig.get_scheme_names() else "posix_prefix"
    borrowed = dict.fromkeys((sysconfig.get_path("purelib"), str(TORCH.parent)))
    (Path(sysconfig.get_path("purelib", scheme, paths)) / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return str(Path(sysconfig.get_path("scripts", scheme, paths)) / "python")


def build_wheel(tree, folder, **changes):
    """Build a wheel of ``tree`` in ``folder``; returns its path."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(tree)]
    run(*command, cwd=tree, **changes)
    (wheel,) = folder.glob("*.whl")
    return wheel
