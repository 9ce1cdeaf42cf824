"""The command `boxes`: the box of what is hot, in the photo's own pixels."""

import json

import numpy
import pytest
from PIL import Image
from support.red_or_blue import CELL, SIDE, network, photo

from gradcam_fast.pipeline import networks


@pytest.fixture
def wide(tmp_path, monkeypatch):
    """A photo of twice the input's width, of which the network sees the middle; it is red at cell (2,5)."""
    monkeypatch.setattr(networks, "load_network", lambda name, **_: network(crop=1.0))
    path = tmp_path / "wide.png"
    whole = Image.new("RGB", (8 * SIDE, 4 * SIDE))
    whole.paste(photo("red", (2, 5), scale=4), (2 * SIDE, 0))
    whole.save(path)
    return path


def written(path):
    return json.loads(path.read_text())


def test_the_box_lies_around_what_is_hot_in_pixels_of_the_photo(run, wide, tmp_path):
    out = tmp_path / "boxes.json"
    status, lines, errors = run("boxes", wide, "-o", out, "--masks", "--threshold", 0.5)
    assert (status, errors) == (0, [])
    assert lines[0] == str(wide)
    content = written(out)
    assert content["images"] == [{"id": 1, "file_name": str(wide), "width": 8 * SIDE, "height": 4 * SIDE}]
    (annotation,) = content["annotations"]
    left, top, width, height = annotation["bbox"]
    # A cell of 8x8 pixels of the input is 32x32 of the photo; half of the maximum is a cell wide.
    cell = 4 * CELL
    middle = 2 * SIDE + 5.5 * cell, 2.5 * cell
    assert (left + width / 2, top + height / 2) == pytest.approx(middle, abs=1)
    assert width == pytest.approx(cell, abs=2) and height == pytest.approx(cell, abs=2)
    counts = annotation["segmentation"]["counts"]
    mask = numpy.repeat(numpy.arange(len(counts)) % 2, counts).reshape(8 * SIDE, 4 * SIDE).T
    assert mask.sum() == annotation["area"]
    rows, columns = numpy.nonzero(mask)
    assert [columns.min(), rows.min()] == [left, top] and columns.max() + 1 == left + width
    assert content["categories"] == [{"id": 0, "name": "red"}]
    assert 0.5 < annotation["score"] < 1
    assert content["info"]["threshold"] == 0.5 and content["info"]["method"] == "gradcam"


def test_a_lower_threshold_gives_a_larger_box(run, wide, tmp_path):
    areas = []
    for threshold in (0.2, 0.8):
        run("boxes", wide, "-o", tmp_path / "boxes.json", "--threshold", threshold)
        areas.append(written(tmp_path / "boxes.json")["annotations"][0]["area"])
    assert areas[0] > 2 * areas[1]


def test_two_places_are_two_regions_or_the_largest_one(run, small, tmp_path):
    path = tmp_path / "two.png"
    picture = photo("red", (1, 1), scale=1)
    picture.paste("red", (4 * CELL, 4 * CELL, 6 * CELL, 6 * CELL))
    picture.save(path)
    small(0)
    out = tmp_path / "boxes.json"
    run("boxes", path, "-o", out)
    areas = [annotation["area"] for annotation in written(out)["annotations"]]
    assert len(areas) == 2 and areas[0] > 2 * areas[1]
    run("boxes", path, "-o", out, "--largest")
    assert [annotation["area"] for annotation in written(out)["annotations"]] == areas[:1]


def test_an_empty_map_has_no_region(run, small, tmp_path):
    out = tmp_path / "boxes.json"
    assert run("boxes", *small(1), "--target", "blue", "-o", out)[0] == 0
    content = written(out)
    assert len(content["images"]) == 1 and content["annotations"] == [] and content["categories"] == []


def test_bad_photos_are_named_and_the_others_written(run, small, tmp_path):
    out = tmp_path / "boxes.json"
    status, _, errors = run("boxes", tmp_path / "missing.jpg", *small(2), "-o", out)
    assert status == 1
    assert errors == [f"gradcam-fast: {tmp_path / 'missing.jpg'}: no such file; skipped"]
    assert len(written(out)["images"]) == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [(["--threshold", "2"], "'2' is not a number from 0 to 1"), (["--target", "green"], "--target")],
)
def test_bad_options_are_refused(run, small, tmp_path, options, says):
    status, out, (error,) = run("boxes", *small(1), *options, "-o", tmp_path / "boxes.json")
    assert (status, out) == (2, []) and says in error
    assert not (tmp_path / "boxes.json").exists()
