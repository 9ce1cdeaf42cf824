"""The sources compile against the headers of the oldest supported torch.

The headers come from a wheel of 80 MB, which pip caches; skipped where it cannot be downloaded.
"""

import subprocess
import sys
import zipfile

import pytest
from support.installs import needs_compiler
from support.shared import folder_filled_once
from support.sources import CSRC, cuda_build, cuda_flags, find_torch, toolchain

# Downloads 80 MB and compiles every source.
pytestmark = pytest.mark.slow

OLDEST = "{}.{}.0".format(*find_torch.OLDEST_TORCH)


@pytest.fixture(scope="session")
def include(tmp_path_factory):
    return folder_filled_once(tmp_path_factory, "oldest_torch", fetch_headers) / "torch" / "include"


def fetch_headers(folder):
    # The smallest wheel with all headers: 80 MB instead of 900.
    where = ("--platform=macosx_11_0_arm64", "--python-version=3.11", "--only-binary=:all:", "--retries=1")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", *where, "-d", folder, f"torch=={OLDEST}"]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"torch {OLDEST} could not be downloaded: {done.stderr.strip()[-200:]}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith("torch/include/")])
    wheel.unlink()


@needs_compiler
@pytest.mark.parametrize("source", sorted(path.relative_to(CSRC).as_posix() for path in CSRC.rglob("*.cpp")))
def test_the_cpu_sources_compile(include, source):
    flags = [*toolchain.COMMON_FLAGS, *toolchain.CPU_FLAGS, "-Werror", f"-I{CSRC}", f"-isystem{include}"]
    subprocess.run([*toolchain._cxx(), *flags, "-fsyntax-only", CSRC / source], check=True)


@pytest.mark.parametrize("source", sorted(path.relative_to(CSRC).as_posix() for path in CSRC.rglob("*.cu")))
def test_the_cuda_sources_compile(include, source, tmp_path):
    _, nvcc = cuda_build()
    flags = [*cuda_flags("-cudart=static", "--threads=0"), "-arch=compute_90", f"-I{CSRC}", f"-isystem={include}"]
    # Syntax only for device code: it does not use torch's headers, and its compilation takes long.
    command = [nvcc, "-c", "--fdevice-syntax-only", *flags, CSRC / source, "-o", tmp_path / "library.o"]
    subprocess.run(command, check=True)
