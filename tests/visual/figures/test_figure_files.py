"""Figures as files: size, format, and drawing by several threads without matplotlib's global state."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from gradcam_fast.visual.figures import is_own, panels, save


@pytest.fixture
def photo():
    return torch.randint(0, 256, (3, 256, 384), dtype=torch.uint8)


@pytest.fixture
def heatmap():
    return torch.rand(2, 8, 12)


def test_a_title_is_never_read_as_a_formula(photo, heatmap, tmp_path):
    save(panels(photo, heatmap[:1], [r"$\nonsense{$"]), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0


def test_a_file_has_the_size_of_its_figure_and_the_format_of_its_suffix(photo, heatmap, tmp_path):
    figure = panels(photo, heatmap[:1], ["one"])
    for suffix, kind in ((".png", "PNG"), (".jpg", "JPEG")):
        save(figure, tmp_path / f"a{suffix}")
        with Image.open(tmp_path / f"a{suffix}") as picture:
            assert (picture.format, picture.mode, picture.size) == (kind, "RGB", (1200, 367))


def test_pyplot_is_never_imported(tmp_path):
    program = (
        "import sys, torch, gradcam_fast.visual.figures as f;"
        "f.save(f.panels(torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(1, 2, 2), ['a']), sys.argv[1]);"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program, tmp_path / "a.png"], check=False).returncode == 0


def test_threads_draw_the_same_pictures_as_one_after_the_other(photo, heatmap, tmp_path):
    def draw(name):
        save(panels(photo, heatmap, ["one", "two"]), tmp_path / f"{name}.png")
        return (tmp_path / f"{name}.png").read_bytes()

    alone = draw("alone")
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(draw, range(12))) == {alone}


def test_only_written_figures_are_recognised_as_own(photo, heatmap, tmp_path):
    for suffix in (".png", ".jpg"):
        save(panels(photo, heatmap[:1], ["one"]), tmp_path / f"own{suffix}")
        Image.new("RGB", (4, 3)).save(tmp_path / f"other{suffix}")
        assert is_own(tmp_path / f"own{suffix}") and not is_own(tmp_path / f"other{suffix}")
    (tmp_path / "text.png").write_text("not a picture")
    assert not is_own(tmp_path / "text.png")


def test_letters_that_matplotlibs_font_lacks_come_from_another_installed_font(monkeypatch):
    """A font of another name stands for a fallback: text in letters that only it has is drawn from it."""
    from matplotlib import font_manager

    from gradcam_fast.visual.figures import page

    monkeypatch.setattr(page, "FALLBACK_FONTS", ("STIXGeneral", "no such font"))
    page.font_families.cache_clear()
    try:
        assert page.font_families() == ["DejaVu Sans", "STIXGeneral"]
        properties = font_manager.FontProperties(family=page.font_families())
        assert len(font_manager.fontManager._find_fonts_by_props(properties)) == 2
    finally:
        page.font_families.cache_clear()
