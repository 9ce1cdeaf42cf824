"""Packages on the command line: `export` writes one, `info` describes it, `explain` uses it as the network itself."""

import json
import subprocess
import sys

import numpy
import pandas
import pytest
from support import packages, red_or_blue
from support.command import small_photos

import gradcam_fast
from gradcam_fast.cli.photo_pipeline import table_path
from gradcam_fast.packages import package_info

MODEL = "support.red_or_blue:model"
SIDE = str(red_or_blue.SIDE)
NETWORK = ["--model", MODEL, "--size", SIDE, "--mean", 0, 0, 0, "--std", 1, 1, 1, "--crop", 0.875]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return packages.package(tmp_path_factory, "red or blue")


@pytest.fixture(scope="module")
def classes_come_in(tmp_path_factory):
    return packages.package(tmp_path_factory, "classes come in")


@pytest.fixture
def named(tmp_path):
    """The options of the network with the names of its classes, as the package was made."""
    path = tmp_path / "classes.txt"
    path.write_text("\n".join(red_or_blue.NAMES))
    return [*NETWORK, "--classes", path]


@pytest.mark.slow
def test_photos_are_explained_as_with_the_network(run, package, named, tmp_path):
    """The package takes at most 4 photos at once, and there are 11, in batches of 7."""
    photos = small_photos(tmp_path, 10)
    red_or_blue.photo("blue", cell=(6, 0)).save(photos[0].with_name("blue.png"))
    options = ["explain", photos[0].parent, "--format", "overlay,npy,parquet", "--batch-size", 7, "--verbose"]
    by_model = run(*options, *named, "--topk", 2, "--out", tmp_path / "model")
    by_package = run(*options, "--model", package, "--out", tmp_path / "package")
    assert by_model[0] == by_package[0] == 0 and by_package[2] == []
    assert by_package[1][:3] == by_model[1][:3]
    for path in sorted((tmp_path / "model").rglob("*.jpg")):
        twin = tmp_path / "package" / path.relative_to(tmp_path / "model")
        pictures = [numpy.asarray(red_or_blue.Image.open(picture)).astype(int) for picture in (path, twin)]
        assert abs(pictures[0] - pictures[1]).max() <= 2, path.name
    for path in sorted((tmp_path / "model").rglob("*.npy")):
        twin = tmp_path / "package" / path.relative_to(tmp_path / "model")
        numpy.testing.assert_allclose(numpy.load(path), numpy.load(twin), rtol=0, atol=2e-5)
    first, second = (pandas.read_parquet(table_path(tmp_path / name)) for name in ("model", "package"))
    assert len(first) == 22
    exact = ["path", "class", "class_name", "left", "right", "valid", "layer", "map_height", "map_width"]
    assert first[exact].equals(second[exact])
    for column in ("score", "probability", "raw_min", "raw_max"):
        numpy.testing.assert_allclose(first[column], second[column], rtol=0, atol=1e-5)
    for one, other in zip(first["map"], second["map"], strict=True):
        levels = [numpy.frombuffer(content, numpy.uint8).astype(int) for content in (one, other)]
        assert abs(levels[0] - levels[1]).max() <= 1


@pytest.mark.slow
def test_a_package_of_one_class_explains_it_in_every_photo(run, tmp_path_factory, tmp_path):
    path = packages.package(tmp_path_factory, "blue")
    photos = small_photos(tmp_path, 2)
    status, _, err = run("explain", *photos, "--model", path, "--format", "parquet", "--out", tmp_path / "out")
    assert (status, err) == (0, [])
    assert list(pandas.read_parquet(table_path(tmp_path / "out"))["class_name"]) == ["blue", "blue"]


@pytest.mark.slow
def test_neither_networks_nor_their_packages_are_needed(package, tmp_path):
    red_or_blue.photo().save(tmp_path / "photo.png")
    program = (
        "import sys; sys.modules.update(dict.fromkeys(('torchvision', 'timm', 'safetensors', 'support')))\n"
        "from gradcam_fast.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["explain", tmp_path / "photo.png", "--model", package, "--out", tmp_path]
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].endswith("red (0)")
    assert (tmp_path / "photo-gradcam.jpg").exists()


@pytest.mark.slow
def test_export_writes_a_package_that_explains_and_says_how_to_use_it(run, tmp_path):
    path = tmp_path / "model.pt2"
    status, out, err = run("export", *NETWORK, "--batch", 3, "--method", "hirescam", "-o", path)
    assert status == 0 and all(line.startswith("gradcam-fast: note: ") for line in err)
    assert out == [
        f"{path} explains the most probable class at layer 1 of {MODEL}",
        f"try it: gradcam-fast explain PHOTO --model {path}",
    ]
    info = package_info(path)
    assert (info.batch, info.record.method, info.record.target.kind) == ((3, 3), "hirescam", "highest")
    assert info.preprocessing["crop"] == 0.875 and info.class_names == ("class 0", "class 1")
    photos = small_photos(tmp_path, 2)  # fewer than the package takes
    assert run("explain", *photos, "--model", path, "--out", tmp_path / "out", "--format", "npy")[0] == 0
    heatmap = numpy.load(next((tmp_path / "out").rglob("*.npy")))
    images = red_or_blue.network(0.875, interpolation="bilinear").preprocess(red_or_blue.Image.open(photos[0])).images
    expected = gradcam_fast.explain(red_or_blue.model(), images, method="hirescam").heatmap
    numpy.testing.assert_allclose(heatmap, expected.numpy(), rtol=0, atol=2e-5)


@pytest.mark.slow
def test_info_prints_a_table_or_json(run, package):
    status, out, err = run("info", package)
    facts = dict(line.split(maxsplit=1) for line in out)
    assert (status, err) == (0, [])
    assert facts["network"] == "red or blue" and facts["explains"] == "the 2 most probable classes"
    assert facts["batch"] == "1 to 4 images" and facts["input"] == "3x56x56" and facts["heatmaps"] == "56x56"
    assert facts["operator"] == "PyTorch's own" and facts["classes"] == "2"
    status, out, _ = run("info", package, "--json")
    values = json.loads("\n".join(out))
    assert (status, values["batch"], values["layer"], values["layer_maps"]) == (0, [1, 4], "1", [7, 7])
    assert values["preprocessing"]["mean"] == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "random"], "--weights: model.pt2 has its own weights, classes and preprocessing; leave it out"),
        (["--mean", 0, 0, 0], "--mean: model.pt2 has its own weights"),
        (["--crop", "none"], "--crop: model.pt2 has its own weights"),
        (["--topk", 1], "--topk: model.pt2 explains the 2 most probable classes; export it again for another one"),
        (
            ["--target", "red"],
            "--target: model.pt2 explains the 2 most probable classes; export it with --target",
        ),
        (["--layer", "2"], "--layer: model.pt2 explains 1; export it again for another one"),
        (["--method", "layercam"], "--method: model.pt2 explains by gradcam"),
        (["--dtype", "bfloat16"], "--dtype: model.pt2 was exported in float32"),
        (["--device", "meta"], "--device: model.pt2 was exported for cpu; export it for meta"),
    ],
    ids=str,
)
def test_options_that_the_package_cannot_follow_are_refused(run, package, tmp_path, options, message):
    (photo,) = small_photos(tmp_path, 1)
    status, out, (error,) = run("explain", photo, "--model", package, "--out", tmp_path, *options)
    assert (status, out) == (2, []) and error.startswith(f"gradcam-fast: {message}")


@pytest.mark.slow
def test_a_package_without_preprocessing_explains_no_photos(run, classes_come_in, tmp_path):
    (photo,) = small_photos(tmp_path, 1)
    status, _, (error,) = run("explain", photo, "--model", classes_come_in, "--out", tmp_path)
    assert status == 2 and "does not say how photos are prepared for it; export it with preprocessing=" in error


@pytest.mark.slow
def test_other_commands_say_that_they_take_no_package(run, package, tmp_path):
    assert "is a package, in which the layer is fixed" in run("layers", "--model", package)[2][0]
    assert "which explains photos only" in run("video", "film.mp4", "--model", package, "-o", tmp_path / "o.mp4")[2][0]
    assert "which is already exported" in run("export", "--model", package, "-o", tmp_path / "o.pt2")[2][0]


def test_a_package_that_is_missing_is_one_line(run, tmp_path):
    path = tmp_path / "missing.pt2"
    assert run("info", path) == (2, [], [f"gradcam-fast: package {path}: no such file"])
    (photo,) = small_photos(tmp_path, 1)
    assert run("explain", photo, "--model", path, "--out", tmp_path)[2] == [
        f"gradcam-fast: package {path}: no such file"
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "model.pt"], "does not end in .pt2"),
        (["-o", "missing/model.pt2"], "there is no folder missing; make it first"),
        (
            ["-o", "model.pt2", "--batch", "0:3"],
            "invalid value for '--batch': '0:3' is no range",
        ),
        (
            ["-o", "model.pt2", "--batch", "many"],
            "'many' is no number of images; give the smallest and",
        ),
        (["-o", "model.pt2", "--topk", 3], "--topk: 3 is more than this network's 2 classes"),
        (["-o", "model.pt2", "--target", 7], "--target: class 7 is out of range"),
        ([], "missing option '-o'"),
    ],
    ids=str,
)
def test_what_cannot_be_exported_is_one_line(run, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = run("export", *NETWORK, *options)
    assert (status, out) == (2, []) and message in err[-1]
    assert not list(tmp_path.iterdir())
