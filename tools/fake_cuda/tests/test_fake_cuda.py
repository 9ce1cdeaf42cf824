"""The tests and the benchmark for the GPU, on a machine without one: on the devices of fake_cuda.

csrc/cuda/cam.cu up to its launch, and PyTorch's streams, memory and CUDA graphs are the real ones; the devices, the
kernel's threads and PyTorch's operators are replaced. Time and concurrency are not tested.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from support.shared import folder_filled_once
from support.sources import CSRC, cuda_build, cuda_flags

import gradcam_fast

ROOT = Path(__file__).parents[3]
TOOLS = ROOT / "tools"
TESTS = ROOT / "tests"
RUNTIME = "libfake_cuda.so"

pytestmark = [
    # Compiles the CUDA kernels again and starts eight processes with PyTorch.
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="libraries are loaded first by LD_PRELOAD"),
]


@pytest.fixture(scope="session")
def run_python(tmp_path_factory):
    """run_python(*arguments, **environment): the completed process of a Python with fake CUDA devices."""
    if torch.cuda.is_available():
        pytest.skip("this machine has real CUDA devices")
    if not gradcam_fast.backend().kernels[1].fused:
        pytest.skip(gradcam_fast.backend().kernels[1].why)
    torch_here, nvcc = cuda_build()
    if int(torch_here.cuda.split(".")[0]) < 13:
        pytest.skip(f"the runtime is that of CUDA 13, and torch {torch_here.version} is for CUDA {torch_here.cuda}")
    folder = folder_filled_once(tmp_path_factory, "fake_cuda", partial(build, torch_here, nvcc))

    def run(*arguments, **environment):
        paths = {
            "LD_PRELOAD": folder / RUNTIME,
            "LD_LIBRARY_PATH": folder,
            "PYTHONPATH": f"{folder / 'site'}:{TESTS}:{TOOLS}",
        }
        variables = os.environ | {"OMP_NUM_THREADS": "1"} | {name: str(path) for name, path in paths.items()}
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=variables | environment,
            capture_output=True,
            text=True,
            cwd=folder,
            timeout=1800,
        )

    return run


def build(torch_here, nvcc, folder):
    """The devices, and a copy of the package whose CUDA library is linked to them."""
    runtime = folder / RUNTIME
    compile_host_code = [nvcc, "-shared", "-cudart=none", "-std=c++17", "--no-device-link"]
    includes = [f"-I{CSRC}", f"-I{TESTS / 'csrc'}"]
    host = "-Xcompiler=-fPIC,-w,-O2,-ffp-contract=off,-fvisibility=hidden"
    subprocess.run(
        [*compile_host_code, host, *includes, *sorted((TOOLS / "fake_cuda").glob("*.cpp")), "-o", runtime], check=True
    )
    # PyTorch looks up driver functions in a library of this name.
    (folder / "libcuda.so.1").symlink_to(runtime.name)
    package = folder / "site" / "gradcam_fast"
    shutil.copytree(Path(gradcam_fast.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    # As setup.py builds it, but linked to the fake runtime, and for one architecture: its device code does not run.
    flags = cuda_flags("-cudart=static")
    link = [f"-L{torch_here.lib}", "-ltorch_cpu", "-ltorch_cuda", str(runtime)]
    library = package / "_lib" / "libgradcam_fast_cuda.so"
    sources = [f"-I{CSRC}", f"-isystem={torch_here.include}", CSRC / "cuda" / "cam.cu"]
    subprocess.run(
        [nvcc, "-shared", "-cudart=none", "-arch=compute_90", *flags, *sources, *link, "-o", library], check=True
    )


@pytest.fixture(scope="session")
def count_passed(run_python):
    """count_passed(*tests, **environment): how many tests passed; none may fail or be skipped."""

    def run(*tests, **environment):
        done = run_python(
            "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "fake_cuda.plugin", "-W",
            "error::pytest.PytestUnraisableExceptionWarning", "--rootdir", ROOT, "-c", ROOT / "pyproject.toml", *tests,
            **environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        summary = done.stdout.splitlines()[-1]
        assert "skipped" not in summary
        return int(re.search(r"(\d+) passed", summary)[1])

    return run


def test_the_devices_behave_like_cuda_devices(count_passed):
    assert count_passed(TOOLS / "fake_cuda" / "tests" / "device_checks.py", FAKE_CUDA_DEVICES="2") >= 26


def test_the_tests_of_cuda_graphs_pass(count_passed):
    assert count_passed(TESTS / "cuda_graph" / "test_recorder.py") >= 77


def test_the_tests_of_the_kernel_pass(count_passed):
    kernel_tests = TESTS / "ops" / "test_gpu.py"
    small = "not (agrees_with or same_bits)"
    assert count_passed(kernel_tests, "-k", small, FAKE_CUDA_DEVICES="2") >= 100
    few_shapes = "agrees_with and minmax and (shape1- or shape8- or (shape13- and layercam))"
    assert count_passed(kernel_tests, "-k", few_shapes) >= 72


# No clusters; a device with clusters, but code of an older architecture; no asynchronous copies.
@pytest.mark.parametrize(
    "environment", [{"FAKE_CUDA_CAPABILITY": "80"}, {"FAKE_CUDA_ARCHITECTURE": "80"}, {"FAKE_CUDA_CAPABILITY": "75"}]
)
def test_the_kernel_is_launched_as_the_device_and_its_code_allow(count_passed, environment):
    chosen = "(memory_layout and layercam) or graph_holds"
    assert count_passed(TESTS / "ops" / "test_gpu.py", "-k", chosen, **environment) >= 10


# Runs the program named by the next argument.
RUN_PROGRAM = """
import runpy, sys
from fake_cuda import operators
library = operators.install()
del sys.argv[0]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_benchmark_measures_every_row(run_python, tmp_path):
    results_file = tmp_path / "gpu.json"
    program = ROOT / "benchmarks" / "gpu.py"
    done = run_python("-c", RUN_PROGRAM, program, "--trial", "cuda", "--out", results_file)
    assert done.returncode == 0 and "Exception" not in done.stderr, done.stdout + done.stderr
    results = json.loads(results_file.read_text())
    assert results["copy"]["last_gb_per_s"] > 0
    for row in results["explanations"]:
        assert "missing" not in row, row
