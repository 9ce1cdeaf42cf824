"""What the build works with: the sources, its own modules, and the torch and the compilers that it would take.

Knows nothing of what is tested.
"""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
# At the end of the path: the package to test may be another than the one in this tree.
sys.path.append(str(ROOT))

from build_tools import find_torch, toolchain  # noqa: E402


def cuda_build():
    """The torch and the nvcc that the CUDA library is built with; without them what asks is skipped."""
    try:
        torch = find_torch.find_torch()
        if torch.cuda is None:
            pytest.skip(f"torch {torch.version} is not a CUDA build")
        return torch, toolchain.find_nvcc(torch)
    except find_torch.BuildProblem as problem:
        pytest.skip(problem.reason)


def cuda_flags(*without):
    """The options that nvcc is given on every machine, but for those of ``without``."""
    return [flag for flag in (*toolchain.COMMON_FLAGS, *toolchain.CUDA_FLAGS) if flag not in without]
