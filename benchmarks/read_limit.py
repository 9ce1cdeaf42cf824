"""The read limit of read_limit.cpp as a Python function, compiled against the installed torch."""

import ctypes
import functools
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__).parent
TORCH = Path(torch.__file__).parent


@functools.cache
def _library():
    folder = tempfile.mkdtemp()
    target = Path(folder, "read_limit.so")
    flags = ["-shared", "-fPIC", "-O3", "-std=c++17", f"-isystem{TORCH / 'include'}"]
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    link = [f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-o", target]
    subprocess.run([*compiler, *flags, HERE / "read_limit.cpp", *link], check=True)
    function = ctypes.CDLL(str(target)).read_limit
    function.argtypes = [ctypes.c_void_p, ctypes.c_int64] * 3 + [ctypes.c_int64]
    return function


def read_limit(activations, gradients, out):
    """Read every byte of ``activations`` and ``gradients`` once, and write every element of ``out`` (float32) once."""
    words = (pair for t in (activations, gradients, out) for pair in (t.data_ptr(), t.numel() * t.element_size() // 4))
    _library()(*words, len(activations))
