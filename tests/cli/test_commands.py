"""The command line: pictures of the user's own photos, names that never collide, photos that cannot be read."""

import re
from itertools import pairwise

import numpy
import pytest
import torch
from PIL import Image
from support import red_or_blue
from support.command import CHELSEA

import gradcam_fast
from gradcam_fast.cli import main
from gradcam_fast.pipeline.networks import load_network
from gradcam_fast.pipeline.photo_reading import read_photo
from gradcam_fast.visual import figures


@pytest.fixture
def drawn(monkeypatch):
    """Of every figure that is drawn: titles, colormap, heatmap; of few photos, so that they are drawn in order."""
    seen = []

    def panels(photo, heatmap, titles, *, colormap, **style):
        seen.append((titles, colormap, heatmap))
        return figure(photo, heatmap, titles, colormap=colormap, **style)

    figure = figures.panels
    monkeypatch.setattr(figures, "panels", panels)
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
    empty = tmp_path / "empty"
    empty.mkdir()
    status, out, err = run("explain", text, CHELSEA, tmp_path / "missing.jpg", cut, empty, "--out", tmp_path / "out")
    assert status == 1
    assert sorted(line.split(": ")[:2] for line in err) == sorted(
        ["gradcam-fast", str(bad)] for bad in (text, tmp_path / "missing.jpg", cut, empty)
    )
    assert f"gradcam-fast: {empty}: no photos in this folder; skipped" in err
    assert all(line.endswith("; skipped") for line in err)
    assert out[0] == str(CHELSEA)
    assert re.fullmatch(r" +7[5-9]\.\d %  Egyptian cat \(285\)", out[1])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["chelsea-gradcam.jpg"]
    assert_is_a_picture(tmp_path / "out" / "chelsea-gradcam.jpg", (1200, 665))


def test_nothing_but_bad_photos_is_status_1_too(run, tmp_path):
    status, out, err = run("explain", tmp_path / "missing.jpg", "--out", tmp_path / "out")
    assert (status, out) == (1, [])
    assert err == [f"gradcam-fast: {tmp_path / 'missing.jpg'}: no such file; skipped"]


def test_more_photos_than_a_batch_are_explained_each_as_itself(run, tmp_path):
    coffee = CHELSEA.with_name("coffee.png")
    status, out, _ = run(
        "explain", coffee, CHELSEA, tmp_path / "missing", CHELSEA, coffee, "--out", tmp_path, "--batch-size", 2
    )
    assert status == 1
    first = [line.split("%  ")[1] for before, line in pairwise(out) if before.endswith(".png")]
    assert first == ["espresso (967)", "Egyptian cat (285)", "Egyptian cat (285)", "espresso (967)"]


def test_each_photo_of_a_batch_is_drawn_with_its_own_heatmap_and_probabilities(run, drawn, tmp_path):
    paths = [CHELSEA.with_name("coffee.png"), CHELSEA]
    run("explain", *paths, "--out", tmp_path, "--workers", 1)
    network = load_network("efficientnet_lite0")
    for path, (titles, _, heatmap) in zip(paths, drawn, strict=True):
        photo = read_photo(path)
        alone = gradcam_fast.explain(network.model, network.preprocess([photo]).images, topk=2, size=photo.size[::-1])
        (first, second), probabilities = alone.target[0].tolist(), 100 * alone.logits[0].softmax(0)
        assert titles == [f"{network.class_names[c]}, {probabilities[c]:.1f} %" for c in (first, second)]
        torch.testing.assert_close(heatmap, alone.heatmap[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "titles"),
    [
        ([], [r"Egyptian cat, 7\d\.\d %", r"tiger cat, 1\d\.\d %"]),
        (["--topk", 3], [r"Egyptian cat, 7\d\.\d %", r"tiger cat, 1\d\.\d %", r"tabby, \d\.\d %"]),
        (["--target", 281, "--colormap", "coolwarm"], [r"tabby, \d\.\d %"]),
        (["--target", "tabby"], [r"tabby, \d\.\d %"]),
    ],
)
def test_a_row_is_drawn_for_each_class_asked_about(run, drawn, tmp_path, options, titles):
    assert run("explain", CHELSEA, *options, "--out", tmp_path)[0] == 0
    ((drawn_titles, colormap, _),) = drawn
    assert colormap == ("coolwarm" if "--colormap" in options else "jet")
    assert len(drawn_titles) == len(titles)
    assert all(map(re.fullmatch, titles, drawn_titles))


def test_an_empty_map_says_so_in_its_title(run, drawn, small, tmp_path):
    assert run("explain", *small(1), "--topk", 2, "--out", tmp_path)[0] == 0
    assert [title.endswith(" % (empty map: nothing in favour of this class)") for title in drawn[0][0]] == [False, True]


@pytest.mark.parametrize(
    "options", [["--method", "layercam"], ["--layer", "_blocks.14"], ["--layer", "_bn1", "--method", "hirescam"]]
)
def test_layer_and_method_reach_the_explanation(run, tmp_path, options):
    assert run("explain", CHELSEA, *options, "--format", "npy", "--out", tmp_path)[0] == 0
    heatmap = torch.from_numpy(numpy.load(tmp_path / "chelsea-gradcam.npy"))[0]
    network = load_network("efficientnet_lite0")
    image = network.preprocess([read_photo(CHELSEA)]).images
    choices = dict(zip((name[2:] for name in options[::2]), options[1::2], strict=True))
    expected = gradcam_fast.explain(network.model, image, **choices).heatmap[0]
    torch.testing.assert_close(heatmap, expected, atol=1e-4, rtol=0)
    assert (heatmap - gradcam_fast.explain(network.model, image).heatmap[0]).abs().max() > 0.01


@pytest.mark.parametrize("method", gradcam_fast.methods.METHODS)
def test_the_command_knows_every_method(run, small, tmp_path, method):
    (photo,) = small(1)
    assert run("explain", photo, "--method", method, "--format", "npy", "--out", tmp_path / "out")[0] == 0
    heatmap = torch.from_numpy(numpy.load(next((tmp_path / "out").glob("*.npy"))))[0]
    network = red_or_blue.network()
    expected = gradcam_fast.explain(
        network.model, network.preprocess([read_photo(photo)]).images, method=method
    ).heatmap[0]
    torch.testing.assert_close(heatmap, expected, atol=1e-4, rtol=0)
    assert heatmap.max() > 0.9


def test_many_photos_are_overlaid_and_summed_up_in_a_line(run, small, tmp_path):
    photos = small(20)
    (tmp_path / "bad.png").touch()
    status, out, err = run("explain", *photos, tmp_path / "bad.png", "--out", tmp_path / "out")
    assert (status, len(err)) == (1, 1)
    assert re.fullmatch(
        rf"20 photos explained in \d+\.\d s \(\d+\.\d per second\), 1 skipped; see {tmp_path}/out", out[0]
    )
    assert len(out) == 1
    assert len(list((tmp_path / "out").glob("*-gradcam.overlay.jpg"))) == 20
    _, out, _ = run("explain", *photos, "--out", tmp_path / "out", "--resume")
    assert re.fullmatch(r"0 photos explained in \d\.\d s, 20 already done; see .*", out[0])


def test_few_photos_that_were_all_done_before_are_summed_up_too(run, small, tmp_path):
    photos = small(2)
    assert len(run("explain", *photos, "--out", tmp_path / "out")[1]) > 1
    status, out, err = run("explain", *photos, "--out", tmp_path / "out", "--resume")
    assert (status, err, len(out)) == (0, [], 1)
    assert re.fullmatch(r"0 photos explained in \d\.\d s, 2 already done; see .*", out[0])


def test_a_folder_becomes_a_table_and_the_table_pictures(run, small, tmp_path):
    photos = small(20)
    assert run("explain", photos[0].parent, "--out", tmp_path / "maps", "--format", "parquet,npy")[0] == 0
    (part,) = (tmp_path / "maps" / "maps.parquet").iterdir()
    assert re.fullmatch(r"part-00000-[0-9a-f]{32}\.parquet", part.name)
    status, out, _ = run("render", tmp_path / "maps" / "maps.parquet", "--out", tmp_path / "pictures", "--png")
    assert status == 0 and out[0].startswith("20 photos")
    assert len(list((tmp_path / "pictures").glob("*-gradcam.overlay.png"))) == 20


def test_a_file_that_is_no_picture_of_ours_is_never_replaced(tmp_path):
    photo, other = tmp_path / "a.png", tmp_path / "a-gradcam.jpg"
    Image.new("RGB", (40, 30), "red").save(photo)
    Image.new("RGB", (40, 30), "blue").save(other)
    before = other.read_bytes()
    for _ in range(2):  # the second run replaces its own picture, and only that
        assert main(["explain", str(photo), "--out", str(tmp_path)]) == 0
        assert other.read_bytes() == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a-gradcam-2.jpg", "a-gradcam.jpg", "a.png"]
