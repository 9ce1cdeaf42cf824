"""The built package runs wherever it is installed: under any path, where nothing can be written, by several at once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gradcam_fast

SCRIPT = """
import pathlib, sys, torch, gradcam_fast
assert pathlib.Path(gradcam_fast.__file__).is_relative_to(sys.argv[1]), gradcam_fast.__file__
maps = torch.rand(1, 3, 4, 4)
heatmap = gradcam_fast.cam(maps, maps, 8)[0]
assert torch.allclose(heatmap, gradcam_fast.reference.cam(maps, maps, 8)[0], atol=1e-5)
print([kernel.fused for kernel in gradcam_fast.backend().kernels][0])
"""


def start(folder):
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, cwd="/", **pipes)


def installed(folder):
    package = Path(gradcam_fast.__file__).parent
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__", "*cuda.so"))
    return folder


def assert_runs(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.strip() == str(gradcam_fast.backend().kernels[0].fused)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="paths of POSIX")
@pytest.mark.parametrize("name", ["with spaces", "Überraschung", "日本", "it's; $HOME"])
def test_the_kernel_loads_from_any_path(tmp_path, name):
    assert_runs(start(installed(tmp_path / name)))


@pytest.mark.slow
def test_the_package_runs_where_nothing_can_be_written(tmp_path):
    folder = installed(tmp_path / "site-packages")
    for path in [folder, *folder.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    before = sorted(folder.rglob("*"))
    try:
        assert_runs(start(folder))
        assert sorted(folder.rglob("*")) == before
    finally:
        for path in [folder, *folder.rglob("*")]:
            path.chmod(path.stat().st_mode | 0o200)


@pytest.mark.slow
def test_processes_may_import_the_package_at_once(tmp_path):
    folder = installed(tmp_path / "site-packages")
    for process in [start(folder) for _ in range(3)]:
        assert_runs(process)
