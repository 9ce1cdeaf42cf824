"""Maps in Parquet: pandas reads them, no part is half written, and a resumed run leaves no gap and no double."""

import json
import os
from pathlib import Path

import numpy
import pandas
import pyarrow.parquet
import pytest
from support.red_or_blue import network, photo

from gradcam_fast.cli.console import Report
from gradcam_fast.cli.photo_pipeline import RunSettings, explain_photos, table_path
from gradcam_fast.pipeline import map_table
from gradcam_fast.pipeline.photo_files import PhotoFile
from gradcam_fast.pipeline.question import Question

COUNT = 10
CELLS = [(number % 7, number * 3 % 7) for number in range(COUNT)]


@pytest.fixture
def photos(tmp_path):
    for number, cell in enumerate(CELLS):
        photo("red", cell, scale=2).save(tmp_path / f"{number:02}.png")
    return [PhotoFile(tmp_path / f"{number:02}.png") for number in range(COUNT)]


class Stop(Report):
    """A report that fails after some photos, as Ctrl-C does."""

    def __init__(self, after):
        super().__init__(verbose=False, summary=False, tell=pytest.fail, complain=pytest.fail)
        self.after = after

    def photo_done(self, *_):
        super().photo_done(*_)
        if self.done == self.after:
            raise KeyboardInterrupt


def run(photos, out, *names, after=None, options=Question(topk=2), crop=None, **how):  # noqa: B008
    report = Stop(after)
    explain_photos(network(crop), photos, out, options, RunSettings(names or ("parquet",), batch_size=2, **how), report)
    return report.done


def test_pandas_and_pyarrow_read_a_row_for_each_map(photos, tmp_path):
    run(photos, tmp_path / "out")
    frame = pandas.read_parquet(table_path(tmp_path / "out"))
    assert frame.equals(pyarrow.parquet.read_table(table_path(tmp_path / "out")).to_pandas())
    assert frame["path"].tolist() == [str(photo.path) for photo in photos for _ in range(2)]
    assert frame["class"].tolist() == [0, 1] * COUNT
    assert frame["class_name"].tolist() == ["red", "blue"] * COUNT
    red, blue = frame[::2], frame[1::2]
    for (_, row), cell in zip(red.iterrows(), CELLS, strict=True):
        levels = numpy.frombuffer(row["map"], numpy.uint8).reshape(row["map_height"], row["map_width"])
        assert len(row["map"]) == 49
        expected = numpy.zeros((7, 7))
        expected[cell] = 255
        assert numpy.array_equal(levels, expected)
    assert red["valid"].all() and not blue["valid"].any()
    assert red["score"].tolist() == pytest.approx([1 / 49] * COUNT)
    assert red["raw_max"].tolist() == pytest.approx([1 / 49] * COUNT) and not red["raw_min"].any()
    assert red["probability"].tolist() == pytest.approx([1 / (1 + numpy.exp(-1 / 49))] * COUNT)  # told: softmax
    assert set(frame["layer"]) == {"1"}
    assert set(zip(frame["width"], frame["height"], frame["right"], frame["bottom"], strict=True)) == {(112,) * 4}


@pytest.mark.parametrize("after", [1, 4, 9])
def test_what_an_interruption_leaves_is_a_table_and_resuming_completes_it(photos, tmp_path, monkeypatch, after):
    monkeypatch.setattr(map_table, "ROWS_PER_PART", 4)
    run(photos, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path / "out", after=after)
    table = table_path(tmp_path / "out")
    assert len(pandas.read_parquet(table)) == 2 * after
    (table / ".part-00099.parquet").write_bytes(b"half")  # of a process that was killed
    assert len(pandas.read_parquet(table)) == 2 * after
    assert run(photos, tmp_path / "out", resume=True) == COUNT - after
    expected = pandas.read_parquet(table_path(tmp_path / "whole"))
    assert pandas.read_parquet(table).equals(expected)
    assert run(photos, tmp_path / "out", resume=True) == 0


def test_a_part_has_its_name_only_when_it_is_whole(photos, tmp_path, monkeypatch):
    def half(table, path, **_):
        Path(path).write_bytes(b"PAR1")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(map_table.pyarrow.parquet, "write_table", half)
    with pytest.raises(OSError, match="No space left"):
        run(photos, tmp_path / "out")
    assert not list(table_path(tmp_path / "out").iterdir())
    monkeypatch.undo()
    assert run(photos, tmp_path / "out", resume=True) == COUNT


def test_a_row_that_is_there_is_not_doubled_where_a_picture_is_missing(photos, tmp_path):
    run(photos, tmp_path / "out", "parquet", "npy")
    (tmp_path / "out" / "03-gradcam.npy").unlink()
    assert run(photos, tmp_path / "out", "parquet", "npy", resume=True) == 1
    assert (tmp_path / "out" / "03-gradcam.npy").exists()
    assert len(pandas.read_parquet(table_path(tmp_path / "out"))) == 2 * COUNT


def test_a_table_is_neither_replaced_nor_mixed(photos, tmp_path):
    run(photos[:1], tmp_path / "out")
    with pytest.raises(FileExistsError, match=r"maps.parquet exists; give --resume to add to it, or another --out"):
        run(photos, tmp_path / "out")
    with pytest.raises(ValueError, match=r"was made with method='gradcam', not 'layercam'; resume with the same"):
        run(photos, tmp_path / "out", resume=True, options=Question(topk=2, method="layercam"))
    assert len(pandas.read_parquet(table_path(tmp_path / "out"))) == 2


def test_the_settings_are_in_the_file(photos, tmp_path):
    run(photos[:1], tmp_path / "out")
    (part,) = os.scandir(table_path(tmp_path / "out"))
    settings = json.loads(pyarrow.parquet.read_schema(part.path).metadata[b"gradcam_fast"])
    assert settings["model"] == "red or blue" and settings["method"] == "gradcam" and settings["topk"] == 2


def test_where_the_probability_is_not_known_the_column_is_nan_and_the_score_remains(photos, tmp_path):
    report = Stop(None)
    settings = RunSettings(("parquet",), batch_size=2)
    explain_photos(network(probabilities="auto"), photos, tmp_path / "out", Question(topk=2), settings, report)
    frame = pandas.read_parquet(table_path(tmp_path / "out"))
    assert frame["probability"].isna().all() and frame["score"].notna().all()
