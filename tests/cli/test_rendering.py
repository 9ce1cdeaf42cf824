"""Pictures from a table of maps: the same as explaining makes, skipped if they exist, never outside of the folder."""

import json
from dataclasses import replace
from pathlib import Path

import numpy
import pandas
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from support.red_or_blue import SIDE, network, photo

from gradcam_fast.cli.console import Report
from gradcam_fast.cli.output_files import PictureStyle
from gradcam_fast.cli.photo_pipeline import RunSettings, explain_photos, table_path
from gradcam_fast.cli.rendering import render_table
from gradcam_fast.pipeline.photo_files import PhotoFile
from gradcam_fast.pipeline.question import Question
from gradcam_fast.preprocess import Preprocess

COUNT = 10


@pytest.fixture
def photos(tmp_path):
    files = [tmp_path / f"{number:02}.png" for number in range(COUNT)]
    for number, file in enumerate(files):
        photo("red", (number % 7, number * 3 % 7), scale=2).save(file)
    return [PhotoFile(file) for file in files]


def run(photos, out, *names, crop=None, **settings):
    """Explain photos, and write a table of maps."""
    settings = RunSettings(names or ("parquet",), batch_size=2, **settings)
    report = Report(verbose=False, summary=False, complain=pytest.fail)
    explain_photos(network(crop), photos, out, Question(topk=2), settings, report)


def render(table, out, *names, photos=Path("/"), **how):
    reported, complaints = [], []
    report = Report(verbose=True, tell=reported.append, complain=complaints.append)
    unreadable = render_table(table, photos, out, RunSettings(names, **how), report)
    return unreadable, reported, complaints


def test_pictures_from_the_table_are_those_that_explain_makes(photos, tmp_path):
    wide = Image.new("RGB", (200, 112))
    wide.paste(Image.open(photos[0].path), (44, 0))
    wide.save(photos[0].path)
    names, style = ("overlay", "npy"), PictureStyle(suffix=".png", colormap="viridis", alpha=0.4)
    run(photos, tmp_path / "out", "parquet", *names, crop=0.875, style=style)
    assert render(table_path(tmp_path / "out"), tmp_path / "again", *names, style=style)[0] == 0
    expected = sorted(path for path in (tmp_path / "out").iterdir() if path.is_file())
    assert len(expected) == 3 * COUNT
    for path in expected:
        again = tmp_path / "again" / path.name
        if path.suffix == ".npy":
            assert numpy.abs(numpy.load(path) - numpy.load(again)).max() < 0.01
            assert numpy.load(again).shape == (2, SIDE, SIDE)
        else:
            with Image.open(path) as one, Image.open(again) as other:
                assert one.info == other.info
                assert numpy.abs(numpy.asarray(one).astype(int) - numpy.asarray(other)).max() <= 3


def test_render_passes_over_what_is_there(photos, tmp_path):
    run(photos, tmp_path / "out")
    table = table_path(tmp_path / "out")
    assert len(render(table, tmp_path / "again", "overlay")[1]) == COUNT
    (tmp_path / "again" / "02-gradcam.overlay-2.jpg").unlink()
    _, reported, _ = render(table, tmp_path / "again", "overlay", resume=True)
    assert [line.partition("\n")[0] for line in reported] == [str(photos[2].path)]


def test_photos_that_are_gone_or_others_are_told_and_skipped(photos, tmp_path):
    run(photos, tmp_path / "out")
    photos[0].path.unlink()
    Image.new("RGB", (50, 40)).save(photos[1].path)
    unreadable, reported, complaints = render(table_path(tmp_path / "out"), tmp_path / "again", "overlay")
    assert (unreadable, len(reported)) == (2, COUNT - 2)
    assert complaints == [
        f"{photos[0].path}: no such file; skipped",
        f"{photos[1].path}: has 50 x 40 pixels, but 112 x 112 when it was explained; skipped",
    ]


def test_relative_paths_start_where_render_is_told(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run([replace(photo, path=photo.path.relative_to(tmp_path)) for photo in photos], tmp_path / "out")
    monkeypatch.chdir("/")
    assert render(table_path(tmp_path / "out"), tmp_path / "a", "overlay", photos=tmp_path)[0] == 0
    assert render(table_path(tmp_path / "out"), tmp_path / "b", "overlay", photos=tmp_path / "no")[0] == COUNT


def test_what_is_no_table_of_maps_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is not a table of maps; give the maps\.parquet"):
        render(tmp_path, tmp_path / "out", "overlay")
    other = tmp_path / "other.parquet"
    pandas.DataFrame({"path": ["x"]}).to_parquet(other)
    with pytest.raises(ValueError, match=r"other.parquet is not part of a table of maps"):
        render(other, tmp_path / "out", "overlay")
    other.write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"other.parquet is not part of a table of maps"):
        render(other, tmp_path / "out", "overlay")


@pytest.mark.parametrize("name", ["../../x", "/tmp/x"])
def test_a_table_cannot_write_outside_of_the_folder(photos, tmp_path, name):
    run(photos[:1], tmp_path / "out")
    (part,) = table_path(tmp_path / "out").iterdir()
    table = pyarrow.parquet.read_table(part)
    place = table.schema.get_field_index("name")
    changed = table.set_column(place, "name", pyarrow.array([name] * len(table)))
    pyarrow.parquet.write_table(changed.replace_schema_metadata(table.schema.metadata), part)
    with pytest.raises(ValueError, match="would be outside of"):
        render(part, tmp_path / "again", "overlay")


def rewritten(table, settings, **columns):
    """Write a table again as an older release would have written it."""
    (part,) = table.iterdir()
    old = pyarrow.parquet.read_table(part)
    for name, values in columns.items():
        place = old.schema.get_field_index(name)
        old = old.set_column(place, old.schema.field(name), pyarrow.array(values, old.schema.field(name).type))
    pyarrow.parquet.write_table(old.replace_schema_metadata({b"gradcam_fast": json.dumps(settings)}), part)


def test_a_table_of_a_release_that_took_the_softmax_of_everything_never_contradicts_itself(photos, tmp_path):
    run(photos[:1], tmp_path / "out")
    table = table_path(tmp_path / "out")
    (part,) = table.iterdir()
    settings = json.loads(pyarrow.parquet.read_schema(part).metadata[b"gradcam_fast"])
    assert settings.pop("probabilities") == "softmax"
    rewritten(table, settings, probability=[0.002, 0.998], score=[0.7709, 8.0])
    _, reported, _ = render(table, tmp_path / "again", "npy")
    assert [line.split("  ")[1].strip() for line in reported[0].splitlines()[1:3]] == ["score 0.7709", "99.8 %"]


@pytest.mark.parametrize("place", ["centre", "corner"])
@pytest.mark.parametrize("size", [(90, 60), (3, 900), (5000, 2)])
def test_a_photo_that_was_padded_is_drawn_from_the_table_as_it_was_explained(tmp_path, size, place):
    Image.effect_noise(size, 90).convert("RGB").save(tmp_path / "photo.png")
    preprocess = Preprocess(SIDE, mean=(0,) * 3, std=(1,) * 3, fit="letterbox", place=place)
    padding = replace(network(), preprocess=preprocess)
    settings = RunSettings(("overlay", "parquet"), style=PictureStyle(longest=300, suffix=".png"))
    report = Report(verbose=False, summary=False, complain=pytest.fail)
    explain_photos(padding, [PhotoFile(tmp_path / "photo.png")], tmp_path / "out", Question(), settings, report)
    (picture,) = (tmp_path / "out").glob("*.png")
    with Image.open(picture) as drawn:
        left, top, right, bottom = preprocess.seen_box(size)
        sides = right - left, bottom - top
        assert drawn.size == tuple(round(side * min(1, 300 / max(sides))) for side in sides)
    settings = replace(settings, formats=("overlay",))
    assert render_table(tmp_path / "out" / "maps.parquet", Path("/"), tmp_path / "again", settings, report) == 0
    # A level of the table is 1/255 of the map, and the colours change by up to 4 levels in that.
    assert numpy.abs(levels(picture) - levels(tmp_path / "again" / picture.name)).max() <= 4


def levels(picture):
    return numpy.asarray(Image.open(picture)).astype(int)
