"""Every way to install gives the kernels; where something is missing, the package works without, and says why.

Each install is real, in a copy of the tree and an empty environment. What a wheel holds is tested in test_build.py.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from support.installs import (
    copy_of_the_tree,
    empty_environment,
    environment_without_nvcc,
    needs_compiler,
    pip,
    run,
    tools_folder,
    use,
)

# Almost every test compiles and installs the package anew.
pytestmark = pytest.mark.slow

# Without the CUDA library and optimisation a build takes half the time.
QUICK = {"GRADCAM_FAST_BUILD": "cpu", "CXXFLAGS": "-O0"}
NO_COMPILER = {"PATH": os.devnull, "CUDA_HOME": "", "CUDA_PATH": ""}

HEATMAP = pytest.approx([0, 1 / 3, 2 / 3, 1], abs=1e-6)


@pytest.fixture
def tree(tmp_path):
    return copy_of_the_tree(tmp_path / "tree")


@pytest.fixture
def python(tmp_path):
    return empty_environment(tmp_path / "env")


@needs_compiler
@pytest.mark.parametrize("isolation", [(), ("--no-build-isolation",)], ids=["isolated", "not isolated"])
def test_pip_install_gives_the_kernel(tree, python, tmp_path, isolation):
    pip(python, *isolation, str(tree), cwd=tmp_path, **QUICK)
    used = use(python, tmp_path)
    assert Path(used["file"]).is_relative_to(tmp_path / "env")
    assert (used["heatmap"], used["fused"], used["warnings"]) == (HEATMAP, True, [])


@needs_compiler
def test_an_editable_install_gives_the_kernel_and_the_next_build_takes_it_away(tree, python, tmp_path):
    editable = ("--no-build-isolation", "-e", str(tree))
    pip(python, *editable, cwd=tmp_path, **QUICK)
    used = use(python, tmp_path)
    assert Path(used["file"]).is_relative_to(tree)
    assert (used["heatmap"], used["fused"]) == (HEATMAP, True)
    pip(python, *editable, cwd=tmp_path, GRADCAM_FAST_BUILD="never")
    assert [path.name for path in (tree / "gradcam_fast/_lib").iterdir()] == ["build.json"]
    used = use(python, tmp_path)
    assert (used["heatmap"], used["fused"], used["why"]) == (
        HEATMAP,
        False,
        "gradcam_fast was built with GRADCAM_FAST_BUILD=never",
    )


def test_without_a_compiler_the_install_succeeds_and_warns_once_how_to_fix_it(tree, python, tmp_path):
    for name in ("c++", "g++", "clang++"):
        assert shutil.which(name, path=os.devnull) is None
    pip(python, "--no-build-isolation", str(tree), cwd=tmp_path, CXX="", **NO_COMPILER)
    used = use(python, tmp_path)
    assert (used["heatmap"], used["fused"]) == (HEATMAP, False)
    assert used["why"] == "no C++ compiler was found: c++, g++ and clang++ are not on PATH"
    assert used["fix"].endswith(f" && pip install --force-reinstall --no-deps {tree}")
    (warning,) = used["warnings"]
    assert used["why"] in warning and used["fix"] in warning


@needs_compiler
@pytest.mark.skipif(torch.version.cuda is None, reason="this torch is not a CUDA build")
@pytest.mark.parametrize("release", [None, "11.8"], ids=["no nvcc", "another nvcc"])
def test_without_an_nvcc_of_torch_s_cuda_the_cpu_kernel_is_built_and_the_other_explained(tree, tmp_path, release):
    python = environment_without_nvcc(tmp_path / "env")
    home = tmp_path / "cuda"
    if release:
        (home / "bin").mkdir(parents=True)
        nvcc = home / "bin" / "nvcc"
        nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.99'\n")
        nvcc.chmod(0o755)
    path = tools_folder(tmp_path / "tools", os.environ.get("CXX") or "c++", "g++", "as", "ld", "sh")
    changes = {"CXXFLAGS": "-O0", "PATH": path, "CUDA_HOME": str(home) if release else "", "CUDA_PATH": ""}
    pip(python, "--no-build-isolation", str(tree), cwd=tmp_path, **changes)
    used = use(python, tmp_path)
    assert (used["heatmap"], used["fused"], used["warnings"]) == (HEATMAP, True, [])
    fused, why, fix = used["cuda"]
    major = torch.version.cuda.split(".")[0]
    found = f"{home}/bin/nvcc is of CUDA {release}" if release else "none was found"
    assert not fused and f"torch {torch.__version__} needs an nvcc of CUDA {major}: {found}" in why
    assert "cuda-toolkit" in fix or "CUDA_HOME" in fix


@pytest.mark.parametrize(
    "changes, last_words",
    [
        (
            {"GRADCAM_FAST_BUILD": "require", "CXX": "false"},
            "error: GRADCAM_FAST_BUILD=require, but no cpu library: the C++ compiler 'false' does not run",
        ),
        (
            {"GRADCAM_FAST_BUILD": "always"},
            "GRADCAM_FAST_BUILD='always' is unknown; choose one of auto, cpu, never, require",
        ),
    ],
    ids=["require", "unknown"],
)
def test_a_refused_build_ends_with_the_reason(tree, changes, last_words):
    output = run(sys.executable, "setup.py", "build_ext", cwd=tree, ok=False, **changes)
    assert output.splitlines()[-1] == last_words


@needs_compiler
def test_a_failed_compilation_leaves_the_reason_and_the_compilers_words(tree):
    (tree / "csrc/cpu/cam.cpp").write_text("#error the kernel of tomorrow\n")
    run(sys.executable, "setup.py", "build_ext", "--inplace", cwd=tree, **QUICK)
    assert [path.name for path in (tree / "gradcam_fast/_lib").iterdir()] == ["build.json"]
    cpu = json.loads((tree / "gradcam_fast/_lib/build.json").read_text())["libraries"]["cpu"]
    assert cpu["reason"] == "the C++ compiler failed with exit status 1"
    assert "the kernel of tomorrow" in "\n".join(cpu["log"])
