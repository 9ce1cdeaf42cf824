"""The pictures in docs/pictures are those that the code draws today."""

import importlib.util
import re

import numpy
import pytest
from PIL import Image
from support.documents import DOCS, PAGES

PICTURES = DOCS / "pictures"


@pytest.mark.slow
def test_the_pictures_are_drawn_again_as_they_are_kept(tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite_pytorch")
    spec = importlib.util.spec_from_file_location("make_pictures", DOCS / "make_pictures.py")
    make_pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_pictures)
    monkeypatch.setattr(make_pictures, "PICTURES", tmp_path)
    make_pictures.main()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in PICTURES.glob("*.jpg"))
    for path in tmp_path.iterdir():
        drawn, kept = (numpy.asarray(Image.open(folder / path.name), float) for folder in (tmp_path, PICTURES))
        # Another version of matplotlib or of a processor's code moves letters and colours a little.
        assert drawn.shape == kept.shape and numpy.abs(drawn - kept).mean() < 3, path.name


def test_every_picture_is_shown_on_a_page():
    pages = "".join(page.read_text() for page in PAGES.values())
    shown = set(re.findall(r"pictures/([\w.-]+)\)", pages))
    assert shown == {path.name for path in PICTURES.iterdir()}
