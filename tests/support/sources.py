"""The sources, the build's own modules, and the torch and nvcc that it would use."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
# Appended: the tests may be run on another copy of gradcam_fast than the one in this tree.
sys.path.append(str(ROOT))

from build_tools import find_torch, toolchain  # noqa: E402


def cuda_build():
    """The torch and the nvcc that the CUDA library is built with; skips the test if there are none."""
    try:
        torch = find_torch.find_torch()
        if torch.cuda is None:
            pytest.skip(f"torch {torch.version} is not a CUDA build")
        return torch, toolchain.find_nvcc(torch)
    except find_torch.BuildProblem as problem:
        pytest.skip(problem.reason)


def cuda_flags(*without):
    """The nvcc options of every build, except those in ``without``."""
    return [flag for flag in (*toolchain.COMMON_FLAGS, *toolchain.CUDA_FLAGS) if flag not in without]
