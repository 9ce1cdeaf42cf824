"""Files given to the Python API are opened only if they are regular, of a raster format, and not too large."""

import os
import subprocess

import pytest
from PIL import Image

from gradcam_fast import Preprocess, photos
from gradcam_fast.exceptions import PhotoError, UnreadablePhotoError

PREPROCESS = Preprocess(8)


def test_a_photo_that_cannot_be_read_is_an_error_of_one_photo_and_a_value_error():
    with pytest.raises(PhotoError) as caught:
        PREPROCESS("nowhere.jpg")
    assert caught.type is UnreadablePhotoError and isinstance(caught.value, ValueError)


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices of POSIX")
def test_pipes_and_devices_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", "/dev/zero"):
        with pytest.raises(UnreadablePhotoError, match=f"^{path}: not a regular file$"):
            PREPROCESS(path)


def test_a_file_of_postscript_starts_no_program(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    path = tmp_path / "a.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(UnreadablePhotoError, match="not a photo in a format that Pillow reads"):
        PREPROCESS(path)


def test_a_photo_of_too_many_pixels_is_refused_unless_it_is_given_as_an_image(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "MAX_PIXELS", 599)
    Image.new("RGB", (30, 20), "red").save(tmp_path / "large.png")
    with pytest.raises(UnreadablePhotoError, match="has 30 x 20 pixels, more than 599; make it smaller, or open it"):
        PREPROCESS(tmp_path / "large.png")
    with Image.open(tmp_path / "large.png") as image:
        assert PREPROCESS(image).images.shape == (1, 3, 8, 8)
    monkeypatch.setattr(photos, "MAX_PIXELS", 600)
    assert PREPROCESS(tmp_path / "large.png").images.shape == (1, 3, 8, 8)
