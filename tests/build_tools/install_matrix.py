"""Installs the package beside several releases of torch, and prints a row for each: `make matrix`.

    python tests/build_tools/install_matrix.py FOLDER TORCH...

One wheel is built with the torch of this interpreter. For each TORCH, such as 2.10.0 or 2.13.0+cpu, an environment is
made in FOLDER, under a path with a space and an umlaut. There the wheel has to run and to pass the operator's tests,
and then a build from the sources against that torch has to run. What is cheap of the matrix is in test_install.py,
test_build.py and test_install_places.py. A release of torch takes up to 7 GB, and is removed before the next one.
"""

import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support.installs import build_wheel, copy_of_the_tree, run, use  # noqa: E402

TOOLS = ("numpy", "opencv-python-headless", "setuptools>=77", "hypothesis", "pytest", "pillow")
TESTS = ("tests/ops/test_fused_kernel.py", "tests/ops/test_bad_input_of_the_op.py", "tests/capture/test_capture.py")
EXPECTED = [0, 1 / 3, 2 / 3, 1]


def main(folder, releases):
    folder.mkdir(parents=True, exist_ok=True)
    tree = copy_of_the_tree(folder / "tree")
    wheel = build_wheel(tree, folder, GRADCAM_FAST_BUILD=os.environ.get("GRADCAM_FAST_BUILD") or "auto")
    print(f"{wheel.name}, built beside torch {version_of(sys.executable)}", flush=True)
    failed = 0
    for release in releases:
        began = time.monotonic()
        environment = folder / f"größe {release}"
        try:
            result = check(environment, release, wheel, tree)
        except (AssertionError, subprocess.CalledProcessError) as error:
            result, failed = f"FAILED: {str(error)[-2000:]}", failed + 1
        finally:
            shutil.rmtree(environment, ignore_errors=True)
        print(f"torch {release}: {result} ({time.monotonic() - began:.0f} s)", flush=True)
    return failed


def check(environment, release, wheel, tree):
    """Install one torch and the package beside it, in both ways; returns what was found, in words."""
    venv.create(environment, with_pip=True, symlinks=True)
    python = str(environment / "bin" / "python")
    pip = (python, "-m", "pip", "install", "-q")
    work = environment / "work"
    shutil.copytree(ROOT / "tests", work / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", work)
    run(*pip, f"torch=={release}", *TOOLS, cwd=work)
    run(*pip, "--no-deps", str(wheel), cwd=work)
    of_wheel = used(python, work, environment)
    tests = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS, cwd=work).splitlines()[-1]
    run(*pip, "--no-deps", "--no-build-isolation", "--force-reinstall", str(tree), cwd=work, GRADCAM_FAST_BUILD="cpu")
    used(python, work, environment)
    return f"the wheel runs ({of_wheel}), {tests.strip('= ')}; a build beside it runs"


def used(python, work, environment):
    facts = use(python, work)
    assert Path(facts["file"]).is_relative_to(environment), facts
    assert facts["fused"] and not facts["warnings"], facts
    assert all(abs(value - right) < 1e-6 for value, right in zip(facts["heatmap"], EXPECTED, strict=True)), facts
    return f"torch {facts['torch']}, cpu fused, cuda: {facts['cuda'][1] or 'loaded'}"


def version_of(python):
    return run(python, "-c", "import torch; print(torch.__version__)", cwd=os.sep).strip()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))
