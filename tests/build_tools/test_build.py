"""What a wheel and a source distribution hold. Installing is tested in test_install.py.

One wheel, of everything this machine can build, serves all tests.
"""

import hashlib
import json
import os
import re
import shutil
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from support.installs import (
    ROOT,
    TORCH,
    build_wheel,
    copy_of_the_tree,
    empty_environment,
    needs_compiler,
    pip,
    run,
    use,
)
from support.shared import folder_filled_once

# One wheel holds the CUDA kernels for every architecture: compiling them takes minutes.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    def build(folder):
        # Optimisation takes most of the build's time, and only tests that run the kernels need it.
        quick = {} if os.environ.get("OTHER_PYTHON") else {"CXXFLAGS": "-O0", "NVCC_APPEND_FLAGS": "-Xptxas=-O0"}
        wheel = build_wheel(copy_of_the_tree(folder / "tree"), folder, **quick)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "unpacked")

    (wheel,) = folder_filled_once(tmp_path_factory, "wheel", build).glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def unpacked(wheel):
    return wheel.parent / "unpacked"


@pytest.fixture
def libraries(unpacked):
    libraries = sorted((unpacked / "gradcam_fast/_lib").glob("*.so"))
    assert "libgradcam_fast_cpu.so" in [path.name for path in libraries]
    return libraries


@needs_compiler
def test_a_wheel_with_libraries_is_for_this_platform_and_every_python(wheel):
    platform = re.sub(r"\W", "_", sysconfig.get_platform())
    assert re.fullmatch(rf"gradcam_fast-[\d.]+-py3-none-{platform}\.whl", wheel.name)


@needs_compiler
def test_the_wheel_holds_the_package_its_libraries_and_no_sources(unpacked):
    inside = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    assert {
        "gradcam_fast/py.typed",
        "gradcam_fast/cli/evaluation/report.html.jinja",
        "gradcam_fast/serving/static/index.html",
        "gradcam_fast/serving/static/page.js",
        "gradcam_fast/_lib/build.json",
        "gradcam_fast/_lib/libgradcam_fast_cpu.so",
    } <= inside
    assert not [name for name in inside if name.startswith(("csrc", "tests", "build"))]


@needs_compiler
def test_the_record_names_torch_the_flags_and_the_architectures(unpacked):
    record = json.loads((unpacked / "gradcam_fast/_lib/build.json").read_text())
    assert record["torch"] == {"version": torch.__version__, "cuda": torch.version.cuda}
    assert record["libraries"]["cpu"]["file"] == "libgradcam_fast_cpu.so"
    assert {"-O3", "-ffp-contract=off", "-DTORCH_TARGET_VERSION=0x020a000000000000"} <= set(
        record["libraries"]["cpu"]["flags"]
    )
    cuda = record["libraries"]["cuda"]
    if cuda["file"] is None:
        assert "CUDA" in cuda["reason"]
    else:
        assert cuda["architectures"] == ["sm_75", "sm_80", "sm_86", "sm_90", "compute_90"]


@needs_compiler
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm, which lists symbols, is not here")
def test_the_libraries_need_nothing_but_the_stable_abi_and_the_system(libraries):
    for library in libraries:
        lines = run("nm", "-D", "--format=posix", str(library), cwd=library.parent).splitlines()
        symbols = {line.split()[0]: line.split()[1] for line in lines}
        assert not [name for name in symbols if re.search(r"^_?Py|N?3c10|_ZNK?2at", name)], library.name
        # System symbols carry a version; weak symbols may be missing.
        from_torch = {name for name, kind in symbols.items() if kind == "U" and "@" not in name}
        assert from_torch, library.name
        assert not [name for name in from_torch if not name.startswith(("aoti_torch_", "torch_"))], library.name


@needs_compiler
def test_the_libraries_hold_no_path_of_the_machine_that_built_them(libraries, wheel):
    for library in libraries:
        for path in (TORCH, wheel.parent, ROOT):
            assert str(path).encode() not in library.read_bytes()


@needs_compiler
def test_the_wheel_gives_the_kernel_in_a_clean_environment_without_a_compiler(wheel, tmp_path):
    python = empty_environment(tmp_path / "env")
    pip(python, "--no-index", str(wheel), cwd=tmp_path, PATH=os.devnull, CUDA_HOME="", CUDA_PATH="")
    used = use(python, tmp_path)
    assert Path(used["file"]).is_relative_to(tmp_path / "env")
    assert (used["fused"], used["warnings"]) == (True, [])
    assert used["heatmap"] == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=1e-6)


def test_a_wheel_without_libraries_is_for_every_platform(tmp_path):
    tree = copy_of_the_tree(tmp_path / "tree")
    # A library that was built in place must not get into a wheel without libraries.
    (tree / "gradcam_fast/_lib").mkdir()
    (tree / "gradcam_fast/_lib/libgradcam_fast_cpu.so").write_text("old")
    wheel = build_wheel(tree, tmp_path, GRADCAM_FAST_BUILD="never")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert [name for name in zipfile.ZipFile(wheel).namelist() if "_lib/" in name] == ["gradcam_fast/_lib/build.json"]


def test_a_source_distribution_holds_all_that_the_build_needs(tmp_path):
    tree = copy_of_the_tree(tmp_path / "tree")
    run(sys.executable, "setup.py", "-q", "sdist", "-d", str(tmp_path / "dist"), cwd=tree)
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as contents:
        packed = {name.partition("/")[2] for name in contents.getnames()}
    needed = {
        path.relative_to(ROOT).as_posix()
        for folder in ("build_tools", "csrc", "gradcam_fast")
        for path in (ROOT / folder).rglob("*.*")
        if path.is_file() and not {"__pycache__", "_lib"} & set(path.parts)
    }
    assert needed <= packed, needed - packed
    assert {"setup.py", "pyproject.toml"} <= packed


@needs_compiler
@pytest.mark.skipif(not os.environ.get("OTHER_PYTHON"), reason="OTHER_PYTHON names no interpreter with another torch")
def test_the_same_library_serves_another_torch(wheel, unpacked, tmp_path):
    other = os.environ["OTHER_PYTHON"]
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    with zipfile.ZipFile(wheel) as archive:
        built = hashlib.sha256(archive.read("gradcam_fast/_lib/libgradcam_fast_cpu.so")).hexdigest()
    paths = {"PYTHONPATH": str(unpacked)}
    say = "import torch, gradcam_fast; print(torch.__version__, gradcam_fast.__file__, gradcam_fast.backend())"
    said = run(other, "-c", say, cwd=tmp_path, **paths)
    version = said.split()[0]
    assert version != torch.__version__
    assert str(unpacked) in said
    assert "cpu   fused: libgradcam_fast_cpu.so is loaded" in said
    tests = [other, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/ops/test_fused_kernel.py"]
    print(f"built against torch {torch.__version__}, run by {version}:", run(*tests, cwd=tmp_path, **paths))
    served = (unpacked / "gradcam_fast/_lib/libgradcam_fast_cpu.so").read_bytes()
    assert hashlib.sha256(served).hexdigest() == built
