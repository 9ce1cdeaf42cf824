"""The files of each photo get names of their own, and never replace a file that this package did not write."""

import os
from pathlib import Path

import numpy
import pandas
import pyarrow.parquet
import pytest
from PIL import Image
from support.red_or_blue import photo

from gradcam_fast.cli import picture_files
from gradcam_fast.cli.output_names import OutputNames
from gradcam_fast.pipeline.photo_files import PhotoFile, wanted_name


def named(photos, out=Path("out"), suffixes=(".jpg",)):
    files = [photo if isinstance(photo, PhotoFile) else PhotoFile(Path(photo)) for photo in photos]
    names = OutputNames([file.path for file in files], out, suffixes)
    return [names.claim(file.path, wanted_name(file)) for file in files]


def test_photos_of_one_name_get_pictures_of_their_own():
    assert named(["a/x.jpg", "b/x.jpg", "b/X.png", "y.jpg", "a/x.jpg"]) == [
        "x-gradcam", "x-gradcam-2", "X-gradcam-3", "y-gradcam", "x-gradcam-4"
    ]  # fmt: skip


def test_the_tree_of_a_folder_is_kept():
    photos = [PhotoFile(Path("p/a/x.jpg"), Path("a")), PhotoFile(Path("p/b/x.jpg"), Path("b"))]
    assert named(photos) == ["a/x-gradcam", "b/x-gradcam"]


def test_no_picture_takes_the_place_of_a_photo(tmp_path):
    photos = [tmp_path / "x.jpg", tmp_path / "x-gradcam.jpg"]
    assert named(photos, tmp_path / "elsewhere" / "..") == ["x-gradcam-2", "x-gradcam-gradcam"]


def test_all_files_of_a_photo_have_one_number(tmp_path):
    Image.new("RGB", (4, 3)).save(tmp_path / "x-gradcam.overlay.jpg")  # not ours
    assert named(["x.png"], tmp_path, (".jpg", ".overlay.jpg")) == ["x-gradcam-2"]
    assert named(["x.png"], tmp_path, (".jpg",)) == ["x-gradcam"]


def test_a_name_belongs_to_one_photo_also_where_only_a_table_is_written():
    assert named(["a/x.jpg", "b/x.jpg"], suffixes=()) == ["x-gradcam", "x-gradcam-2"]


def test_a_name_that_the_table_has_given_stays_with_its_photo():
    names = OutputNames((), Path("out"), (), {"x-gradcam": "a/x.jpg"})
    assert names.claim(Path("b/x.jpg"), "X-gradcam") == "X-gradcam-2"
    assert names.claim(Path("a/x.jpg"), "x-gradcam") == "x-gradcam"


@pytest.mark.parametrize("stem", ["ж" * 120, "日" * 80, "x" * 232, "🦊" * 61])
def test_names_are_cut_to_what_a_file_system_takes_and_stay_apart(stem):
    photos = [PhotoFile(Path(folder, stem + ending)) for folder in "ab" for ending in ("1.jpg", "2.jpg")]
    names = {wanted_name(photo) for photo in photos}
    assert len(names) == 4
    assert all(len(f"{name}-1000.overlay-1000.jpg".encode()) <= 255 for name in names)
    assert all(name.startswith(stem[:20]) and name.endswith("-gradcam") for name in names)


def test_bytes_that_are_not_utf8_become_text():
    photo_file = PhotoFile(Path(os.fsdecode(b"caf\xe9.jpg")), Path(os.fsdecode(b"s\xff")))
    assert wanted_name(photo_file) == "s%FF/caf%E9-gradcam"


def test_a_folder_a_pipe_and_a_dangling_link_are_not_replaced(tmp_path):
    (tmp_path / "a-gradcam.jpg").mkdir()
    os.mkfifo(tmp_path / "b-gradcam.jpg")
    (tmp_path / "c-gradcam.jpg").symlink_to(tmp_path / "missing")
    assert named(["a.png", "b.png", "c.png"], tmp_path) == ["a-gradcam-2", "b-gradcam-2", "c-gradcam-2"]


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("formats", ["overlay", "panels", "npy", "overlay,npy,parquet"])
def test_a_second_folder_takes_names_of_its_own_and_the_first_keeps_its_files(run, small, tmp_path, formats):
    out, (first,) = tmp_path / "out", small(1)
    second = tmp_path / "other" / first.name
    second.parent.mkdir()
    photo("blue", (0, 0), scale=1).save(second)
    assert run("explain", first, "--out", out, "--format", formats)[0] == 0
    before = files_of(out)
    assert run("explain", second.parent, "--out", out, "--format", formats, "--resume")[0] == 0
    after = files_of(out)
    assert {name: after[name] for name in before} == before
    assert len(after) == 2 * len(before)
    for photos in ((second, first), (first, second), (second,)):  # in whatever order: nothing is made again
        assert run("explain", *photos, "--out", out, "--format", formats, "--resume")[0] == 0
        assert files_of(out) == after


def test_rendering_a_table_of_two_folders_gives_each_photo_its_picture(run, small, tmp_path):
    (first,) = small(1)
    second = tmp_path / "other" / first.name
    second.parent.mkdir()
    photo("blue", (0, 0), scale=1).save(second)
    for path in (first, second):
        assert run("explain", path, "--out", tmp_path / "out", "--format", "parquet", "--resume")[0] == 0
    table = tmp_path / "out" / "maps.parquet"
    assert len(set(pandas.read_parquet(table)["name"])) == 2
    assert run("render", table, "--out", tmp_path / "pictures")[0] == 0
    assert len(files_of(tmp_path / "pictures")) == 2


def rename_rows(table, column, values):
    for part in table.iterdir():
        rows = pyarrow.parquet.read_table(part)
        place = rows.schema.get_field_index(column)
        changed = rows.set_column(place, column, pyarrow.array(values))
        pyarrow.parquet.write_table(changed.replace_schema_metadata(rows.schema.metadata), part)


@pytest.mark.parametrize("file", ["holiday.jpg", "holiday.npy"])
def test_a_row_of_the_table_replaces_no_file_of_the_users(run, small, tmp_path, file):
    photos = small(1)
    assert run("explain", *photos, "--out", tmp_path / "out", "--format", "parquet")[0] == 0
    table = tmp_path / "out" / "maps.parquet"
    rename_rows(table, "name", ["holiday"])
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / file).write_bytes(b"mine")
    for _ in range(2):
        assert run("render", table, "--out", pictures, "--format", "panels,npy")[0] == 0
        assert files_of(pictures)[file] == b"mine"
        assert sorted(files_of(pictures)) == sorted([file, "holiday-2.jpg", "holiday-2.npy"])


def test_a_file_that_comes_after_the_name_was_given_is_not_replaced(run, small, tmp_path, monkeypatch):
    monkeypatch.setattr(OutputNames, "_may_stand_beside", lambda *_: True)  # as if it were not there yet
    (photo_file,) = small(1)
    (tmp_path / "out").mkdir()
    file = tmp_path / "out" / "00-gradcam.overlay.jpg"
    file.write_bytes(b"mine")
    status, _, err = run("explain", photo_file, "--out", tmp_path / "out", "--format", "overlay")
    assert status == 1 and f"{file} exists and is not of this photo" in err[0]
    assert file.read_bytes() == b"mine"


def test_rows_of_one_name_get_a_picture_each(run, small, tmp_path):
    photos = small(2)
    assert run("explain", *photos, "--out", tmp_path / "out", "--format", "parquet")[0] == 0
    table = tmp_path / "out" / "maps.parquet"
    rename_rows(table, "name", ["same", "same"])
    assert run("render", table, "--out", tmp_path / "pictures")[0] == 0
    assert sorted(files_of(tmp_path / "pictures")) == ["same-2.overlay.jpg", "same.overlay.jpg"]


def test_a_name_through_a_link_writes_nothing_outside_of_the_folder(run, small, tmp_path):
    photos = small(1)
    assert run("explain", *photos, "--out", tmp_path / "out", "--format", "parquet")[0] == 0
    rename_rows(tmp_path / "out" / "maps.parquet", "name", ["link/x"])
    for folder in ("pictures", "elsewhere"):
        (tmp_path / folder).mkdir()
    (tmp_path / "pictures" / "link").symlink_to(tmp_path / "elsewhere")
    status, _, err = run("render", tmp_path / "out" / "maps.parquet", "--out", tmp_path / "pictures")
    assert status == 1 and "would be outside of" in err[0]
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_marked_array_is_read_as_any_other(run, small, tmp_path):
    photos = small(1)
    assert run("explain", *photos, "--out", tmp_path, "--format", "npy")[0] == 0
    (file,) = tmp_path.glob("*.npy")
    assert picture_files.photo_of(file) == str(photos[0])
    assert numpy.array_equal(numpy.load(file), numpy.load(file, mmap_mode="r"))
    with open(file, "rb") as opened:
        assert numpy.load(opened).shape == (1, 56, 56)
