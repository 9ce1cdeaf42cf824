"""Photo files are found in folders and by patterns."""

import numpy
import pytest

from gradcam_fast.cli.picture_files import encode
from gradcam_fast.pipeline.photo_files import find_photos


@pytest.fixture
def tree(tmp_path):
    for name in ("b.JPG", "a.png", ".hidden.jpg", "notes.txt", "sub/c.webp", "sub/.git/d.jpg", "out/e-gradcam.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def find(paths, folder, out="out"):
    return [
        (photo.path.relative_to(folder).as_posix(), photo.subfolder.as_posix())
        for photo in find_photos(paths, folder / out, pytest.fail)
    ]


def test_a_folder_is_its_photos_and_those_below_without_the_pictures(tree):
    assert find([tree], tree) == [("a.png", "."), ("b.JPG", "."), ("sub/c.webp", "sub")]


def test_pictures_beside_the_photos_are_no_photos(tree):
    pixels = [[[0, 0, 0]]]
    own = encode(numpy.array(pixels, numpy.uint8), ".jpg", quality=90, note="")
    (tree / "a-gradcam.overlay.jpg").write_bytes(own)
    (tree / "my-gradcam.jpg").touch()  # so named by someone else
    names = [name for name, _ in find([tree], tree, out=".")]
    assert names == ["a.png", "b.JPG", "my-gradcam.jpg", "out/e-gradcam.jpg", "sub/c.webp"]


def test_a_pattern_is_matched_and_a_name_taken_as_it_is(tree):
    assert find([f"{tree}/**/*.webp", tree / "missing.jpg", tree / "notes.txt"], tree) == [
        ("sub/c.webp", "."),
        ("missing.jpg", "."),
        ("notes.txt", "."),
    ]
    odd = tree / "x[1].jpg"
    odd.touch()
    assert find([odd], tree) == [("x[1].jpg", ".")]


def test_a_pattern_without_match_stays_to_be_complained_of(tree):
    assert find([f"{tree}/*.bmp"], tree) == [("*.bmp", ".")]


def test_a_folder_without_photos_is_told(tmp_path):
    messages = []
    assert find_photos([tmp_path], tmp_path / "out", messages.append) == []
    assert messages == [f"{tmp_path}: no photos in this folder"]
