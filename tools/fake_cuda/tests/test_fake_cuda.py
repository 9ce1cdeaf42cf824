"""The GPU's tests and its benchmark where there is no GPU: on CUDA devices in the host's memory (fake_cuda).

What csrc/cuda/cam.cu does before its kernel, PyTorch's streams, memory and recorded graphs are the real ones; the
devices, the kernel's threads and PyTorch's operators are not. Says nothing of time, nor of what runs at the same time.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.sources import CSRC, cuda_build, cuda_flags

import gradcam_fast

ROOT = Path(__file__).parents[3]
TOOLS = ROOT / "tools"
TESTS = ROOT / "tests"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="libraries are loaded first by LD_PRELOAD")


@pytest.fixture(scope="session")
def there(tmp_path_factory):
    """there(arguments of python, **environment): what a process with such devices did."""
    if torch.cuda.is_available():
        pytest.skip("there are real ones")
    if not gradcam_fast.backend().kernels[1].fused:
        pytest.skip(gradcam_fast.backend().kernels[1].why)
    torch_here, nvcc = cuda_build()
    if int(torch_here.cuda.split(".")[0]) < 13:
        pytest.skip(f"the runtime is that of CUDA 13, and torch {torch_here.version} is for CUDA {torch_here.cuda}")
    folder = tmp_path_factory.mktemp("fake_cuda")
    runtime = folder / "libfake_cuda.so"
    plain = [nvcc, "-shared", "-cudart=none", "-std=c++17", "--no-device-link"]
    includes = [f"-I{CSRC}", f"-I{TESTS / 'csrc'}"]
    host = "-Xcompiler=-fPIC,-w,-O2,-ffp-contract=off,-fvisibility=hidden"
    subprocess.run([*plain, host, *includes, *sorted((TOOLS / "fake_cuda").glob("*.cpp")), "-o", runtime], check=True)
    # What PyTorch looks for as the driver.
    (folder / "libcuda.so.1").symlink_to(runtime.name)
    package = folder / "site" / "gradcam_fast"
    shutil.copytree(Path(gradcam_fast.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    # As it is built, but for the runtime it is linked to, and for one architecture, whose code nothing runs.
    flags = cuda_flags("-cudart=static")
    link = [f"-L{torch_here.lib}", "-ltorch_cpu", "-ltorch_cuda", str(runtime)]
    library = package / "_lib" / "libgradcam_fast_cuda.so"
    sources = [f"-I{CSRC}", f"-isystem={torch_here.include}", CSRC / "cuda" / "cam.cu"]
    subprocess.run(
        [nvcc, "-shared", "-cudart=none", "-arch=compute_90", *flags, *sources, *link, "-o", library], check=True
    )

    def run(*arguments, **environment):
        paths = {"LD_PRELOAD": runtime, "LD_LIBRARY_PATH": folder, "PYTHONPATH": f"{package.parent}:{TESTS}:{TOOLS}"}
        everything = os.environ | {"OMP_NUM_THREADS": "1"} | {name: str(path) for name, path in paths.items()}
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=everything | environment,
            capture_output=True,
            text=True,
            cwd=folder,
            timeout=1800,
        )

    return run


def passes(there, *tests, **environment):
    done = there(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "fake_cuda.plugin", "-W",
        "error::pytest.PytestUnraisableExceptionWarning", "--rootdir", ROOT, "-c", ROOT / "pyproject.toml", *tests,
        **environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    summary = done.stdout.splitlines()[-1]
    assert "skipped" not in summary
    return int(re.search(r"(\d+) passed", summary)[1])


def test_the_devices_behave(there):
    assert passes(there, TOOLS / "fake_cuda" / "checks.py", DEVICES_ON_HOST="2") >= 26


def test_the_tests_of_graphs_pass(there):
    assert passes(there, TESTS / "cuda_graph" / "test_gpu_graph.py") >= 77


def test_the_tests_of_the_kernel_pass(there):
    large = "agrees_with or same_bits"
    assert passes(there, TESTS / "ops" / "test_gpu.py", "-k", f"not ({large})", DEVICES_ON_HOST="2") >= 100
    assert (
        passes(
            there,
            TESTS / "ops" / "test_gpu.py",
            "-k",
            "agrees_with and minmax and (shape1- or shape8- or (shape13- and layercam))",
        )
        >= 72
    )


# Without clusters; with them, but by code of an older architecture; without asynchronous copies.
@pytest.mark.parametrize(
    "environment", [{"CAPABILITY_ON_HOST": "80"}, {"ARCHITECTURE_ON_HOST": "80"}, {"CAPABILITY_ON_HOST": "75"}]
)
def test_the_kernel_is_launched_as_the_device_and_its_code_allow(there, environment):
    chosen = "(memory_layout and layercam) or graph_holds"
    assert passes(there, TESTS / "ops" / "test_gpu.py", "-k", chosen, **environment) >= 10


# A program, in a process where the devices are.
AS_MAIN = """
from fake_cuda import plugin
import runpy, sys
del sys.argv[0]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_benchmark_measures_every_row(there, tmp_path):
    found = tmp_path / "gpu.json"
    program = ROOT / "benchmarks" / "gpu.py"
    done = there("-c", AS_MAIN, program, "--trial", "cuda", "--out", found)
    assert done.returncode == 0 and "Exception" not in done.stderr, done.stdout + done.stderr
    results = json.loads(found.read_text())
    assert results["copy"]["last_gb_per_s"] > 0
    for row in results["explanations"]:
        assert "missing" not in row, row
