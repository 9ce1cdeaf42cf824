"""Photos to files: maps where the colour is, resumed runs, bad photos, whole files only."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from support.red_or_blue import CELL, SIDE, network, photo
from torch import nn

import gradcam_fast
from gradcam_fast.cli import output_files, photo_pipeline, picture_files
from gradcam_fast.cli.console import Report
from gradcam_fast.cli.output_files import PictureStyle
from gradcam_fast.cli.photo_pipeline import RunSettings, explain_photos
from gradcam_fast.pipeline.photo_files import PhotoFile
from gradcam_fast.pipeline.photo_reading import read_photo
from gradcam_fast.pipeline.pictures import resize_heatmap
from gradcam_fast.pipeline.processors import cores
from gradcam_fast.pipeline.question import Question
from gradcam_fast.probabilities import confidence
from gradcam_fast.visual.figures import is_own


@pytest.fixture
def photos(tmp_path):
    """Three photos: red at (2,5), blue at (0,0), red at (6,3)."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour, cell in (("a.png", "red", (2, 5)), ("b.jpg", "blue", (0, 0)), ("c.png", "red", (6, 3))):
        photo(colour, cell).save(folder / name, **({"quality": 95} if name.endswith("jpg") else {}))
    return [PhotoFile(path) for path in sorted(folder.iterdir())]


@pytest.fixture
def run(tmp_path):
    """Explain photos into tmp_path / "out"; give back the results reported, in order, and the errors."""

    def run(photos, *names, options=None, net=None, **how):
        results, complaints = [], []

        class RecordingReport(Report):
            def photo_done(self, path, result, files):
                results.append((path.name, result, [file.name for file in files]))

        how.setdefault("batch_size", 2)
        report = RecordingReport(verbose=False, summary=False, tell=pytest.fail, complain=complaints.append)
        explain_photos(
            net or network(),
            photos,
            tmp_path / "out",
            options or Question(topk=1),
            RunSettings(names, **how),
            report,
        )
        return results, complaints

    return run


def names_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_each_photo_is_answered_as_explain_would(run, photos):
    net = network()
    for (_, result, _), file in zip(run(photos, "npy", options=Question(topk=2))[0], photos, strict=True):
        expected = gradcam_fast.explain(net.model, net.preprocess([read_photo(file.path)]).images, topk=2, size=7)
        assert result.classes == tuple(expected.target[0].tolist())
        assert result.scores == pytest.approx(expected.score[0].tolist(), abs=1e-6)
        assert result.raw_max == pytest.approx(expected.raw_max[0].tolist(), abs=1e-6)
        assert result.raw_min == pytest.approx(expected.raw_min[0].tolist(), abs=1e-6)
        assert result.probabilities == pytest.approx(expected.logits.softmax(1).sort(descending=True)[0][0].tolist())
        assert result.layer == expected.layer == "1"
        assert numpy.abs(result.maps - expected.heatmap[0].numpy()).max() < 1e-6
        assert result.names == tuple(net.class_names[number] for number in result.classes)


def test_the_network_runs_once_for_each_batch_and_twice_to_find_the_layer(run, photos):
    calls = []
    net = network()
    net.model.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    run(photos, "npy", net=net)
    assert calls[-2:] == [2, 1]
    assert set(calls[:-2]) == {1} and len(calls) <= 5


def test_an_overlay_is_red_where_the_colour_is_to_the_pixel(run, photos, tmp_path):
    run(photos[:1], "overlay", style=PictureStyle(suffix=".png", alpha=1.0))
    picture = numpy.asarray(Image.open(tmp_path / "out" / "a-gradcam.overlay.png")).astype(int)
    assert picture.shape == (224, 224, 3)
    hot = (picture[..., 0] > 200) & (picture[..., 2] < 50)
    rows, columns = numpy.nonzero(hot)
    assert (rows.mean() + 0.5) / 32 == pytest.approx(2.5, abs=0.05)
    assert (columns.mean() + 0.5) / 32 == pytest.approx(5.5, abs=0.05)


def test_what_is_beyond_the_crop_is_not_in_the_picture(run, tmp_path):
    wide = Image.new("RGB", (400, 224))
    wide.paste(photo("red", (2, 5)), (88, 0))
    wide.save(tmp_path / "wide.png")
    run(
        [PhotoFile(tmp_path / "wide.png")],
        "overlay",
        net=network(crop=1.0),
        style=PictureStyle(suffix=".png", alpha=0.0),
    )
    picture = Image.open(tmp_path / "out" / "wide-gradcam.overlay.png").convert("RGB")
    assert numpy.array_equal(numpy.asarray(picture), numpy.asarray(photo("red", (2, 5))))


def test_the_files_of_each_format_and_class(run, photos, tmp_path):
    results = run(photos[:1], "overlay", "panels", "npy", options=Question(topk=2))[0]
    expected = ["a-gradcam.overlay-1.jpg", "a-gradcam.overlay-2.jpg", "a-gradcam.jpg", "a-gradcam.npy"]
    assert results[0][2] == expected
    assert names_in(tmp_path / "out") == sorted(expected)
    heatmaps = numpy.load(tmp_path / "out" / "a-gradcam.npy")
    assert heatmaps.shape == (2, SIDE, SIDE) and heatmaps.dtype == numpy.float32
    assert numpy.array_equal(heatmaps[0], resize_heatmap(results[0][1].maps[0], (SIDE, SIDE)))
    assert divmod(int(heatmaps[0].argmax()) // CELL, SIDE // CELL)[1] == 5
    with Image.open(tmp_path / "out" / "a-gradcam.overlay-1.jpg") as picture:
        assert (picture.format, picture.size) == ("JPEG", (224, 224))
        assert json.loads(picture.info["comment"]) == {
            "photo": str(photos[0].path), "model": "red or blue", "input": [SIDE, SIDE], "layer": None,
            "method": "gradcam", "target": None, "topk": 2, "probabilities": "softmax",
            "colormap": "jet", "alpha": 0.5, "quality": 90, "longest": 1600,
        }  # fmt: skip


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("name", ["overlay", "panels"])
@pytest.mark.parametrize("fast", [True, False])
def test_pictures_know_their_own(run, photos, tmp_path, suffix, name, fast, monkeypatch):
    if not fast:
        monkeypatch.setattr(picture_files, "simplejpeg", None)
    run(photos[:1], name, style=PictureStyle(suffix=suffix))
    (picture,) = (tmp_path / "out").iterdir()
    assert is_own(picture)
    assert json.loads(picture_files.read_note(picture))["method"] == "gradcam"
    with Image.open(picture) as opened:
        opened.load()
        assert opened.format == {".jpg": "JPEG", ".png": "PNG"}[suffix]


def test_pictures_of_large_photos_are_made_smaller(run, tmp_path):
    photo(scale=10).save(tmp_path / "large.png")
    run([PhotoFile(tmp_path / "large.png")], "overlay", style=PictureStyle(longest=300))
    assert Image.open(tmp_path / "out" / "large-gradcam.overlay.jpg").size == (300, 300)


def test_bad_photos_are_told_in_their_place_and_the_others_done(run, photos, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    results, complaints = run([photos[0], PhotoFile(tmp_path / "bad.jpg"), *photos[1:]], "overlay")
    assert [name for name, *_ in results] == ["a.png", "b.jpg", "c.png"]
    assert complaints == [f"{tmp_path / 'bad.jpg'}: not a photo in a format that Pillow reads; skipped"]


@pytest.mark.parametrize("names", [("overlay",), ("npy",), ("panels", "npy")])
def test_a_resumed_run_does_what_is_missing_and_nothing_else(run, photos, tmp_path, names):
    run(photos, *names)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    gone = tmp_path / "out" / f"b-gradcam{output_files.suffixes(names, 1, PictureStyle())[-1]}"
    gone.unlink()
    assert [name for name, *_ in run(photos, *names, resume=True)[0]] == ["b.jpg"]
    assert sorted(before) == sorted((tmp_path / "out").iterdir())
    assert all(path.stat().st_mtime_ns == before[path] for path in before if not path.name.startswith("b-"))
    assert run(photos, *names, resume=True)[0] == []


def test_a_picture_made_otherwise_or_of_another_photo_is_made_again(run, photos, tmp_path):
    run(photos, "overlay")
    otherwise = Question(topk=1, method="hirescam")
    assert len(run(photos, "overlay", resume=True, options=otherwise)[0]) == 3
    for style in ({"colormap": "viridis"}, {"alpha": 0.3}, {"quality": 70}):
        again = run(photos, "overlay", resume=True, options=otherwise, style=PictureStyle(**style))[0]
        assert len(again) == 3
    run(photos, "overlay", options=otherwise)
    other = tmp_path / "elsewhere" / "a.png"
    other.parent.mkdir()
    photo("blue").save(other)
    again = run([PhotoFile(other)], "overlay", resume=True, options=otherwise)[0]
    assert [result.names for _, result, _ in again] == [("blue",)]


def test_a_file_that_could_not_be_written_whole_is_not_there(run, photos, tmp_path, monkeypatch):
    def half(path, data):
        with open(path, "wb") as file:
            file.write(data[:100])
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="No space left"):
        run(photos, "overlay")
    assert names_in(tmp_path / "out") == []
    monkeypatch.undo()
    run(photos, "overlay", resume=True)
    assert names_in(tmp_path / "out") == [f"{stem}-gradcam.overlay.jpg" for stem in "abc"]


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "sub" / "x.jpg"
    monkeypatch.setattr(os, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        output_files.write_whole(path, b"all of it")
    assert names_in(tmp_path) == []
    monkeypatch.undo()
    output_files.write_whole(path, b"all of it")
    assert names_in(tmp_path) == ["sub/x.jpg"] and path.read_bytes() == b"all of it"


def test_maps_have_the_grid_of_the_layer(run, tmp_path):
    Image.new("RGB", (112, 56), "red").save(tmp_path / "wide.png")
    wide = replace(network(), preprocess=network().preprocess.changed(size=(56, 112)))
    ((_, result, _),), _ = run([PhotoFile(tmp_path / "wide.png")], "npy", net=wide)
    assert result.maps.shape == (1, 7, 14)
    assert numpy.load(tmp_path / "out" / "wide-gradcam.npy").shape == (1, 56, 112)


def test_a_wrong_layer_is_told_before_a_photo_is_read(run, photos, monkeypatch):
    monkeypatch.setattr(photo_pipeline, "read_photo", lambda _: pytest.fail("read"))
    with pytest.raises(ValueError, match="layer 'conv9'"):
        run(photos, "npy", options=Question(layer="conv9"))


def test_no_gradient_and_no_thread_of_opencv_stays(run, photos):
    import cv2

    cv2.setNumThreads(2)
    net = network()
    run(photos, "overlay", net=net)
    assert cv2.getNumThreads() == 2
    assert all(parameter.grad is None for parameter in net.model.parameters())


def test_the_network_computes_in_the_type_asked_for(run, photos):
    net = network()
    (first, *_), _ = run(photos, "npy", net=net, dtype=torch.bfloat16)
    assert next(net.model.parameters()).dtype == torch.bfloat16
    assert first[1].classes == (0,) and first[1].maps.dtype == numpy.float32
    assert first[1].maps[0, 2, 5] == 1.0


def test_workers_are_as_many_as_cores_unless_said():
    assert 1 <= cores() <= (os.cpu_count() or 1)
    assert RunSettings().workers == cores()
    assert RunSettings(workers=7).workers == 7


def test_several_batches_on_their_way_do_not_mix(run, tmp_path):
    cells = [(number % 7, number * 3 % 7) for number in range(11)]
    for number, cell in enumerate(cells):
        photo("red", cell, scale=1).save(tmp_path / f"{number:02}.png")
    results, _ = run([PhotoFile(tmp_path / f"{number:02}.png") for number in range(11)], "npy", batch_size=3)
    assert [divmod(int(result.maps[0].argmax()), 7) for _, result, _ in results] == cells


def test_a_single_output_has_a_score_and_no_probability(run, photos):
    net = network()
    alone = replace(net, model=nn.Sequential(net.model, nn.Linear(2, 1)).eval(), class_names=("redness",))
    alone.model[1].weight.data = torch.tensor([[1.0, 0.0]])
    results = run(photos, "panels", net=alone)[0]
    for _, result, _ in results:
        assert result.names == ("redness",) and math.isnan(result.probabilities[0])
        assert confidence(result.probabilities[0], result.scores[0]) == f"score {result.scores[0]:.4g}"


@pytest.mark.parametrize("end", [nn.Softmax(1), nn.Sigmoid()], ids=["softmax", "sigmoid"])
def test_probabilities_that_the_network_returns_are_not_changed(run, photos, end):
    net = network(probabilities="auto")
    ended = replace(net, model=nn.Sequential(net.model, end).eval(), probabilities="given")
    for _, result, _ in run(photos, "npy", net=ended, options=Question(topk=2))[0]:
        assert result.probabilities == result.scores
        assert [(share, score) for _, _, share, score in result.best] == list(zip(*[result.scores] * 2, strict=True))


def test_outputs_of_nothing_known_are_printed_as_scores_each_its_own(photos, tmp_path):
    lines = []
    report = Report(verbose=True, summary=False, tell=lines.append)
    net = network(probabilities="auto")
    explain_photos(net, photos[:1], tmp_path / "out", Question(topk=2), RunSettings(("npy",)), report)
    logits = net.model(net.preprocess([read_photo(photos[0].path)]).images)[0]
    expected = [f"  score {logits[0]:.4g}  red (0)", f"  score {logits[1]:.4g}  blue (1)"]
    assert lines[0].splitlines()[1:3] == expected


def test_every_picture_of_an_untrained_network_says_so(run, photos, tmp_path):
    untrained = replace(network(), title="red or blue (random weights)")
    run(photos[:1], "overlay", "panels", net=network(), style=PictureStyle(suffix=".png"))
    trained = {name: numpy.asarray(Image.open(tmp_path / "out" / name)) for name in names_in(tmp_path / "out")}
    run(photos[:1], "overlay", "panels", net=untrained, style=PictureStyle(suffix=".png"))
    overlay, panels = "a-gradcam.overlay.png", "a-gradcam.png"
    before, after = trained[overlay].astype(int), numpy.asarray(Image.open(tmp_path / "out" / overlay)).astype(int)
    changed = (before != after).any(-1)
    assert changed[-30:, :110].any() and not changed[:180].any() and not changed[:, 130:].any()
    assert Image.open(tmp_path / "out" / panels).height > trained[panels].shape[0]
