"""Which files are photos, of folders, patterns and names; and under which names their pictures go."""

from pathlib import Path

import pytest
from PIL import Image

from gradcam_fast.cli.gathering import Photo, gather
from gradcam_fast.cli.naming import names_for
from gradcam_fast.cli.written import encoded


@pytest.fixture
def tree(tmp_path):
    for name in ("b.JPG", "a.png", ".hidden.jpg", "notes.txt", "sub/c.webp", "sub/.git/d.jpg", "out/e-gradcam.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def found(paths, folder, out="out"):
    return [
        (each.path.relative_to(folder).as_posix(), each.place.as_posix())
        for each in gather(paths, folder / out, pytest.fail)
    ]


def test_a_folder_is_its_photos_and_those_below_without_the_pictures(tree):
    assert found([tree], tree) == [("a.png", "."), ("b.JPG", "."), ("sub/c.webp", "sub")]


def test_pictures_beside_the_photos_are_no_photos(tree):
    pixels = [[[0, 0, 0]]]
    import numpy

    own = encoded(numpy.array(pixels, numpy.uint8), ".jpg", quality=90, note="")
    (tree / "a-gradcam.overlay.jpg").write_bytes(own)
    (tree / "my-gradcam.jpg").touch()  # so named by someone else
    names = [name for name, _ in found([tree], tree, out=".")]
    assert names == ["a.png", "b.JPG", "my-gradcam.jpg", "out/e-gradcam.jpg", "sub/c.webp"]


def test_a_pattern_is_matched_and_a_name_taken_as_it_is(tree):
    assert found([f"{tree}/**/*.webp", tree / "missing.jpg", tree / "notes.txt"], tree) == [
        ("sub/c.webp", "."),
        ("missing.jpg", "."),
        ("notes.txt", "."),
    ]
    odd = tree / "x[1].jpg"
    odd.touch()
    assert found([odd], tree) == [("x[1].jpg", ".")]


def test_a_pattern_without_match_stays_to_be_complained_of(tree):
    assert found([f"{tree}/*.bmp"], tree) == [("*.bmp", ".")]


def test_a_folder_without_photos_is_told(tmp_path):
    told = []
    assert gather([tmp_path], tmp_path / "out", told.append) == []
    assert told == [f"{tmp_path}: no photos in this folder"]


def named(photos, out=Path("out"), suffixes=(".jpg",)):
    return names_for([each if isinstance(each, Photo) else Photo(Path(each)) for each in photos], out, suffixes)


def test_photos_of_one_name_get_pictures_of_their_own():
    assert named(["a/x.jpg", "b/x.jpg", "b/X.png", "y.jpg", "a/x.jpg"]) == [
        "x-gradcam", "x-gradcam-2", "X-gradcam-3", "y-gradcam", "x-gradcam-4"
    ]  # fmt: skip


def test_the_tree_of_a_folder_is_kept():
    photos = [Photo(Path("p/a/x.jpg"), Path("a")), Photo(Path("p/b/x.jpg"), Path("b"))]
    assert named(photos) == ["a/x-gradcam", "b/x-gradcam"]


def test_no_picture_takes_the_place_of_a_photo(tmp_path):
    photos = [tmp_path / "x.jpg", tmp_path / "x-gradcam.jpg"]
    assert named(photos, tmp_path / "elsewhere" / "..") == ["x-gradcam-2", "x-gradcam-gradcam"]


def test_all_files_of_a_photo_have_one_number(tmp_path):
    Image.new("RGB", (4, 3)).save(tmp_path / "x-gradcam.overlay.jpg")  # not ours
    assert named(["x.png"], tmp_path, (".jpg", ".overlay.jpg")) == ["x-gradcam-2"]
    assert named(["x.png"], tmp_path, (".jpg",)) == ["x-gradcam"]
