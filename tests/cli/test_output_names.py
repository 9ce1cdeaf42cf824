"""The files of each photo get names of their own, and never replace a file that this package did not write."""

from pathlib import Path

from PIL import Image

from gradcam_fast.cli.output_files import output_names
from gradcam_fast.cli.photo_files import PhotoFile


def named(photos, out=Path("out"), suffixes=(".jpg",)):
    return output_names(
        [photo if isinstance(photo, PhotoFile) else PhotoFile(Path(photo)) for photo in photos], out, suffixes
    )


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
