"""Builds the C++ modules in tests/csrc with ninja and pybind11."""

import importlib.util
import os
import subprocess
import sysconfig
from functools import partial
from pathlib import Path

import pytest
import torch

from support.shared import folder_filled_once

ROOT = Path(__file__).parents[2]


def load(name, tmp_path_factory):
    """The module that tests/csrc/NAME.cpp makes, built once per run."""
    folder = folder_filled_once(tmp_path_factory, name, partial(build, name))
    spec = importlib.util.spec_from_file_location(name, folder / _file(name))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(name, folder):
    pybind11, ninja = pytest.importorskip("pybind11"), pytest.importorskip("ninja")
    includes = [
        ROOT / "csrc",
        pybind11.get_include(),
        sysconfig.get_path("include"),
        Path(torch.__file__).parent / "include",
    ]
    flags = " ".join(
        [
            "-shared -fPIC -O1 -std=c++17 -ffp-contract=off -fvisibility=hidden -w",
            *(f"-I{folder}" for folder in includes),
        ]
    )
    (folder / "build.ninja").write_text(
        f"rule module\n  command = {os.environ.get('CXX', 'c++')} {flags} $in -o $out\n"
        f"build {folder / _file(name)}: module {ROOT / 'tests' / 'csrc' / f'{name}.cpp'}\n"
    )
    subprocess.run([Path(ninja.BIN_DIR, "ninja"), "-C", folder], check=True)


def _file(name):
    return f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
