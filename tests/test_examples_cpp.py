"""The example in C++: built against the libraries of this PyTorch, it explains a photo without Python."""

import os
import re
import shutil
import subprocess

import numpy
import pytest
import torch
from support import packages, red_or_blue
from support.installs import ROOT, TORCH, needs_compiler, run
from support.shared import folder_filled_once

import gradcam_fast

SOURCES = ROOT / "examples" / "cpp"

pytestmark = [
    pytest.mark.slow,
    needs_compiler,
    pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake here"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    def build(folder):
        run(
            "cmake",
            "-S",
            str(SOURCES),
            "-B",
            str(folder),
            "-DCMAKE_BUILD_TYPE=Debug",
            f"-DTORCH_DIR={TORCH}",
            cwd=folder,
        )
        run("cmake", "--build", str(folder), cwd=folder)

    return folder_filled_once(tmp_path_factory, "example in C++", build) / "explain"


@pytest.fixture(scope="module")
def self_contained(tmp_path_factory):
    return packages.package(tmp_path_factory, "red or blue")


@pytest.fixture(scope="module")
def by_operator(tmp_path_factory):
    return packages.package(tmp_path_factory, "red or blue by the operator")


@pytest.fixture
def photo(tmp_path):
    """Red at the cell (2, 5) of 7x7, and wider than high, so that its sides are cut off."""
    picture = red_or_blue.photo("red", cell=(2, 5))
    wide = red_or_blue.Image.new("RGB", (picture.width + 64, picture.height))
    wide.paste(picture, (32, 0))
    wide.save(tmp_path / "photo.ppm")
    return tmp_path / "photo.ppm"


def explain(program, *arguments):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, env=environment)


def read_pgm(path):
    kind, width, height, brightest, pixels = path.read_bytes().split(maxsplit=4)
    assert (kind, brightest) == (b"P5", b"255")
    return numpy.frombuffer(pixels, numpy.uint8).reshape(int(height), int(width))


def assert_explains_like_python(program, package, photo, *libraries):
    out = photo.with_name("heatmap.pgm")
    done = explain(program, package, photo, out, *libraries)
    assert done.returncode == 0, done.stderr
    with red_or_blue.Image.open(photo) as picture:
        images = red_or_blue.network(0.875, interpolation="bilinear").preprocess([picture]).images
    expected = gradcam_fast.explain(red_or_blue.model(), images, topk=2)
    (first, second) = done.stdout.splitlines()
    assert re.fullmatch(rf"red \(0\): score 0\.\d+, heatmap {out}", first)
    assert second.startswith("blue (1): score 0, ")
    assert float(re.search(r"score ([\d.]+)", first)[1]) == pytest.approx(expected.score[0, 0].item(), abs=1e-4)
    heatmap = torch.from_numpy(read_pgm(out).astype(numpy.float32)) / 255
    # Torch's resize of a photo rounds differently from Pillow's, by at most a level of 255.
    torch.testing.assert_close(heatmap, expected.heatmap[0, 0], rtol=0, atol=0.01)
    assert not read_pgm(out.with_name("heatmap-2.pgm")).any()


def test_a_self_contained_package_needs_the_libraries_of_pytorch_only(program, self_contained, photo):
    assert_explains_like_python(program, self_contained, photo)


def test_a_package_with_the_operator_needs_its_library(program, by_operator, photo):
    assert_explains_like_python(program, by_operator, photo, gradcam_fast.library_path("cpu"))
    without = explain(program, by_operator, photo, photo.with_name("none.pgm"))
    assert without.returncode != 0 and "gradcam_fast" in without.stderr


def test_what_goes_wrong_is_said_in_a_line(program, self_contained, photo, tmp_path):
    (tmp_path / "text.ppm").write_text("no photo")
    for arguments, message in {
        (): "give model.pt2 photo.ppm heatmap.pgm",
        (tmp_path / "missing.pt2", photo, tmp_path / "out.pgm"): "file open failed",
        (self_contained, tmp_path / "text.ppm", tmp_path / "out.pgm"): "is no binary PPM of 8 bits",
        (self_contained, photo, tmp_path / "missing" / "out.pgm"): "cannot write",
        (self_contained, photo, tmp_path / "out.pgm", tmp_path / "missing.so"): "missing.so",
    }.items():
        done = explain(program, *arguments)
        assert done.returncode == 1 and message in done.stderr and len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("explain: ")


def test_the_program_is_short():
    assert len((SOURCES / "main.cpp").read_text().splitlines()) < 100
