"""The command `evaluate`: values that can be checked, runs that can be continued, a report that shows them."""

import csv
import json
import re

import pytest
import torch
from PIL import Image
from support.red_or_blue import CELL, SIDE, network, photo

import gradcam_fast
from gradcam_fast import metrics
from gradcam_fast.cli.evaluation import judge
from gradcam_fast.cli.evaluation.cases import best_and_worst
from gradcam_fast.pipeline import networks
from gradcam_fast.pipeline.photo_reading import read_photo
from gradcam_fast.visual.figures import is_own

pytest.importorskip("scipy", reason="intervals are SciPy's (extra metrics)")

CELLS = [(2, 5), (0, 0), (6, 3), (3, 3), (1, 4)]
BASELINES = ["random", "centre", "edges", "saliency"]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Five photos, each red or blue in one cell; the network is the one that tells red from blue."""
    monkeypatch.setattr(networks, "load_network", lambda name, **_: network())
    folder = tmp_path / "photos"
    folder.mkdir()
    for place, cell in enumerate(CELLS):
        photo("blue" if place == 1 else "red", cell, scale=2).save(folder / f"{place}.png")
    return folder


@pytest.fixture
def box_file(photos, tmp_path):
    """COCO JSON with the cell of each photo but the last one."""
    side = 2 * CELL
    content = {
        "images": [
            {"id": place, "file_name": f"{place}.png", "width": 2 * SIDE, "height": 2 * SIDE} for place in range(4)
        ],
        "annotations": [
            {"image_id": place, "bbox": [column * side, row * side, side, side]}
            for place, (row, column) in enumerate(CELLS[:4])
        ],
    }
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(content))
    return path


def rows_of(out):
    with open(out / "values.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_values_are_what_the_metrics_say_of_each_photo(run, photos, box_file, tmp_path):
    out = tmp_path / "out"
    status, lines, errors = run(
        "evaluate", photos, "--methods", "gradcam,layercam", "--metrics", "deletion,mass_accuracy", "--boxes", box_file,
        "--out", out, "--batch-size", 2,
    )  # fmt: skip
    assert status == 0
    assert errors == [f"gradcam-fast: note: {box_file} has no boxes for 1 photo, such as {photos / '4.png'}"]
    assert lines[0].split() == ["deletion", "down", "mass_accuracy", "up"]
    assert lines[-1] == f"5 photos evaluated; see {out / 'index.html'}"
    rows = rows_of(out)
    assert [row["row"] for row in rows[:6]] == ["gradcam", "layercam", *BASELINES]
    net = network()
    images = net.preprocess([read_photo(path) for path in sorted(photos.iterdir())]).images
    explanation = gradcam_fast.explain(net.model, images, method="layercam", probabilities="softmax")
    boxes = torch.tensor([[c * CELL, r * CELL, (c + 1) * CELL, (r + 1) * CELL] for r, c in CELLS]).float()
    deletion = metrics.deletion(net.model, images, explanation).area
    mass = metrics.mass_accuracy(explanation.heatmap, boxes)
    found = [row for row in rows if row["row"] == "layercam"]
    assert [row["class_name"] for row in found] == ["red", "blue", "red", "red", "red"]
    assert [float(row["probability"]) for row in found] == pytest.approx(explanation.logits.softmax(1).amax(1).tolist())
    assert [float(row["deletion"]) for row in found] == pytest.approx(deletion.tolist(), abs=1e-6)
    assert [float(row["mass_accuracy"]) for row in found[:4]] == pytest.approx(mass[:4].tolist(), abs=1e-6)
    assert found[4]["mass_accuracy"] == "nan"
    centre = [float(row["deletion"]) for row in rows if row["row"] == "centre"]
    expected = metrics.deletion(net.model, images, metrics.centre_map(images), explanation.target, score="softmax").area
    assert centre == pytest.approx(expected.tolist(), abs=1e-6)


def test_boxes_are_where_the_network_sees_them(run, monkeypatch, tmp_path):
    monkeypatch.setattr(networks, "load_network", lambda name, **_: network(crop=1.0))
    whole = Image.new("RGB", (4 * SIDE, 2 * SIDE))
    whole.paste(photo("red", (2, 5), scale=2), (SIDE, 0))
    whole.save(tmp_path / "wide.png")
    side = 2 * CELL
    boxes = [[SIDE + 5 * side, 2 * side, side, side], [0, 0, SIDE - 1, 2 * SIDE]]  # the second one is cut off
    annotations = [{"image_id": 1, "bbox": box} for box in boxes]
    (tmp_path / "boxes.json").write_text(
        json.dumps({"images": [{"id": 1, "file_name": "wide.png"}], "annotations": annotations})
    )
    arguments = [
        "--boxes",
        tmp_path / "boxes.json",
        "--metrics",
        "rank_accuracy,pointing_game",
        "--out",
        tmp_path / "out",
    ]
    assert run("evaluate", tmp_path / "wide.png", *arguments)[0] == 0
    values = {row["row"]: row for row in rows_of(tmp_path / "out")}
    assert float(values["gradcam"]["pointing_game"]) == 1 and float(values["gradcam"]["rank_accuracy"]) > 0.8
    assert float(values["random"]["rank_accuracy"]) < 0.5


def test_layers_are_rows_of_their_own(run, photos, tmp_path):
    out = tmp_path / "out"
    assert run("evaluate", photos / "0.png", "--layers", "auto,0", "--metrics", "gini", "--out", out)[0] == 0
    assert [row["row"] for row in rows_of(out)] == ["gradcam, auto", "gradcam, 0", *BASELINES]
    status, _, (error,) = run(
        "evaluate", photos, "--layers", "layer9", "--metrics", "gini", "--out", tmp_path / "other"
    )
    assert status == 2 and "layer9" in error
    assert not (tmp_path / "other" / "values.csv").exists()


def test_an_interrupted_run_is_continued_with_the_same_values(run, photos, tmp_path, monkeypatch):
    arguments = ["evaluate", photos, "--metrics", "deletion,gini", "--batch-size", 2]
    assert run(*arguments, "--out", tmp_path / "whole")[0] == 0
    compare, calls = judge.compare, []

    def interrupted(*given, **how):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return compare(*given, **how)

    monkeypatch.setattr(judge, "compare", interrupted)
    status, _, (error,) = run(*arguments, "--out", tmp_path / "out")
    assert status == 130
    assert error == "gradcam-fast: interrupted after 2 photos; run the same command with --resume to go on"
    with open(tmp_path / "out" / "values.csv", "a") as file:
        file.write("photos/2.png,0,red,0.7,gradcam,0.")  # half a line, as of a process that was killed
    assert len(calls) == 2
    status, out, _ = run(*arguments, "--out", tmp_path / "out", "--resume")
    assert status == 0 and out[-1].startswith("5 photos evaluated")
    assert len(calls) == 4  # two batches more, of the three photos that were missing
    expected, found = rows_of(tmp_path / "whole"), rows_of(tmp_path / "out")
    assert [{**row, "deletion": 0, "gini": 0} for row in found] == [
        {**row, "deletion": 0, "gini": 0} for row in expected
    ]
    for column in ("deletion", "gini"):
        assert [float(row[column]) for row in found] == pytest.approx(
            [float(row[column]) for row in expected], abs=1e-6
        )
    assert run(*arguments, "--out", tmp_path / "out", "--resume")[0] == 0
    assert len(calls) == 4


def test_a_run_with_other_options_is_not_continued(run, photos, tmp_path):
    out = tmp_path / "out"
    run("evaluate", photos, "--metrics", "gini", "--out", out)
    status, _, (error,) = run("evaluate", photos, "--metrics", "gini", "--target", "blue", "--out", out, "--resume")
    assert status == 2
    assert "the values in" in error and "target None, and now it is 1; give the same options, or another --out" in error
    before = (out / "values.csv").read_bytes()
    assert run("evaluate", photos, "--metrics", "gini", "--target", "blue", "--out", out)[0] == 0
    assert (out / "values.csv").read_bytes() != before


@pytest.mark.parametrize("name", ["values.csv", "index.html", "settings.json"])
def test_files_of_others_are_not_replaced(run, photos, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("[]")
    status, _, (error,) = run("evaluate", photos, "--metrics", "gini", "--out", out)
    assert status == 2 and f"{out / name} exists and is not of an evaluation" in error
    assert (out / name).read_text() == "[]" and len(list(out.iterdir())) == 1


def test_the_report_shows_the_table_and_the_best_and_worst_photos(run, photos, box_file, tmp_path):
    out = tmp_path / "out"
    arguments = ["--metrics", "mass_accuracy,deletion", "--boxes", box_file, "--cases", 1, "--out", out]
    assert run("evaluate", photos, *arguments)[0] == 0
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "<title>How far to trust the heatmaps of red or blue</title>" in page
    assert "5 photos, each explained for its most probable class" in re.sub(r"\s+", " ", page)
    assert "Boxes of 4 of them are in boxes.json" in page
    with open(out / "summary.csv", encoding="utf-8", newline="") as file:
        summary = {(row["row"], row["metric"]): row for row in csv.DictReader(file)}
    assert summary["gradcam", "mass_accuracy"]["photos"] == "4"
    for row in ("gradcam", *BASELINES):
        for metric in ("mass_accuracy", "deletion"):
            assert f"{float(summary[row, metric]['mean']):.3f}" in page
            assert float(summary[row, metric]["low"]) <= float(summary[row, metric]["mean"])
    values = {row["photo"]: float(row["mass_accuracy"]) for row in rows_of(out) if row["row"] == "gradcam"}
    known = [value for value in values.values() if value == value]
    pictures = re.findall(r'<img src="(pictures/[^"]+)" alt="([^"]+) and its heatmap"', page)
    (best, of_best), (worst, of_worst) = pictures
    assert (best, worst) == ("pictures/gradcam-best-1.jpg", "pictures/gradcam-worst-1.jpg")
    assert values[of_best] == max(known) and values[of_worst] == min(known)
    for path, _ in pictures:
        with Image.open(out / path) as picture:
            assert picture.size == (2 * 2 * SIDE + 8, 2 * SIDE)
        assert is_own(out / path)
    with Image.open(out / "chart.png") as chart:
        assert chart.size[0] > 500
    assert (out / "summary.md").read_text(encoding="utf-8").startswith("|  | mass_accuracy ↑ | deletion ↓ |")


def test_the_picture_of_a_case_has_the_heat_and_the_box_on_the_object(run, photos, box_file, tmp_path):
    out = tmp_path / "out"
    run("evaluate", photos / "0.png", "--metrics", "mass_accuracy", "--boxes", box_file, "--out", out)
    with Image.open(out / "pictures" / "gradcam-best-1.jpg") as picture:
        row, column = CELLS[0]
        middle = int((column + 0.5) * 2 * CELL), int((row + 0.5) * 2 * CELL)
        shown = 2 * SIDE + 8
        red, _, blue = picture.getpixel((shown + middle[0], middle[1]))
        assert red > 150 > blue
        red, _, blue = picture.getpixel((shown + 2, 2 * SIDE - 3))
        assert blue > 40 > red
        assert min(picture.getpixel((shown + column * 2 * CELL, middle[1]))) > 180  # the box's white edge


def test_names_in_the_report_are_escaped(run, photos, tmp_path):
    strange = photos / "<b>&.png"
    photo("red", (2, 2)).save(strange)
    assert run("evaluate", strange, "--metrics", "gini", "--out", tmp_path / "out")[0] == 0
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "<b>&.png" not in page and "&lt;b&gt;&amp;.png" in page


def test_a_photo_that_cannot_be_read_is_named_and_the_others_measured(run, photos, box_file, tmp_path):
    (photos / "bad.png").write_text("no photo")
    content = json.loads(box_file.read_text())
    content["images"][0]["width"] += 1
    box_file.write_text(json.dumps(content))
    arguments = ["--metrics", "gini", "--boxes", box_file, "--out", tmp_path / "out"]
    status, out, errors = run("evaluate", photos, *arguments)
    assert status == 1 and out[-1].startswith("4 photos evaluated")
    assert any(str(photos / "bad.png") in error and error.endswith("; skipped") for error in errors)
    assert any("0.png: has 112 x 112 pixels, but its boxes in boxes.json are of 113 x 112" in error for error in errors)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--methods", "gradcam,magic"], "'magic' is unknown; choose from gradcam,"),
        (["--metrics", "beauty"], "'beauty' is unknown; choose from insertion,"),
        (["--metrics", "iou"], "--metrics: iou needs to know where the objects are; give --boxes FILE"),
        (["--boxes", "missing.json"], "--boxes: missing.json: No such file or directory"),
        (["--target", "green"], "--target"),
        (["--cases", "0"], "'0' is not a whole number from 1"),
        (["--model", "resnet.pt2"], "is a package, in which method and layer are fixed"),
    ],
)
def test_bad_options_are_refused_before_any_work(run, photos, tmp_path, options, says):
    status, out, (error,) = run("evaluate", photos, *options, "--out", tmp_path / "out")
    assert (status, out) == (2, []) and says in error
    assert not (tmp_path / "out").exists()


def test_boxes_of_none_of_the_photos_are_refused(run, photos, tmp_path):
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": "other.png"}], "annotations": []}))
    status, _, (error,) = run("evaluate", photos, "--boxes", path, "--out", tmp_path / "out")
    assert status == 2 and f"--boxes: {path} lists none of these photos, such as {photos / '0.png'}" in error


def test_a_progress_bar_counts_photos(run, photos, tmp_path):
    _, _, errors = run("evaluate", photos, "--metrics", "gini", "--out", tmp_path / "out", "--progress", "--quiet")
    assert "5/5" in "".join(errors)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_no_photo_is_both_best_and_worst(count):
    values = torch.rand(count).tolist()
    best, worst = best_and_worst(values, 3, higher_is_better=True)
    assert not set(best) & set(worst)
    assert values[best[0]] == max(values) and (not worst or values[worst[0]] == min(values))


def test_the_help_names_every_metric_of_the_library():
    from gradcam_fast.cli import evaluate

    assert set(evaluate.METRICS) | set(evaluate.METRICS_OF_BOXES) == set(metrics.METRICS)
