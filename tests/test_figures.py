"""The figure of three panels: each pixel where it belongs, text inside and clear of the panels, no global state."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy
import pytest
import torch
from PIL import Image

from gradcam_fast import overlay
from gradcam_fast.figures import panels, save
from gradcam_fast.overlay import colorize

ROWS, COLUMNS = torch.arange(256.0)[:, None], torch.arange(384.0)


@pytest.fixture
def photo():
    """At the panels' own size, so that nothing has to be resized: noise with a white square at rows and columns."""
    photo = torch.randint(0, 100, (3, 256, 384), dtype=torch.uint8)
    photo[:, 64:96, 192:224] = 255
    return photo


@pytest.fixture
def heatmap():
    """Two maps of 8 x 12 cells of 32 pixels each; in the first, exactly the cell of the white square is hot."""
    maps = torch.zeros(2, 8, 12)
    maps[0, 2, 6] = 1
    maps[1] = torch.rand(8, 12)
    return maps


def drawn_panels(figure, path):
    """The panels as they are in the written file: for each row photo, heatmap, overlay, as (3,H,W) tensors."""
    save(figure, path)
    picture = torch.from_numpy(numpy.array(Image.open(path))).permute(2, 0, 1)
    found = []
    for axes in figure.axes:
        left, bottom, right, top = axes.get_window_extent().extents
        height = picture.shape[1]
        assert max(abs(edge - round(edge)) for edge in (left, bottom, right, top)) < 1e-6
        found.append(picture[:, height - round(top) : height - round(bottom), round(left) : round(right)])
    return found


def centre(weights):
    return [float((weights * ROWS).sum() / weights.sum()), float((weights * COLUMNS).sum() / weights.sum())]


def test_photo_heatmap_and_overlay_are_drawn_to_the_pixel(photo, heatmap, tmp_path):
    found = drawn_panels(panels(photo, heatmap, ["one", "two"], colormap="viridis", alpha=0.4), tmp_path / "a.png")
    maps = torch.nn.functional.interpolate(heatmap[None], (256, 384), mode="bilinear")[0]
    assert len(found) == 6
    for i in range(2):
        assert torch.equal(found[3 * i], photo)
        assert torch.equal(found[3 * i + 1], colorize(maps[i], "viridis"))
        assert torch.equal(found[3 * i + 2], overlay(photo, maps[i], colormap="viridis", alpha=0.4)[0])


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_the_hot_cell_lies_on_the_bright_square_in_every_panel(photo, heatmap, tmp_path, scale):
    larger = photo.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    drawn, colored, blended = drawn_panels(panels(larger, heatmap[:1], ["hot"]), tmp_path / "a.png")
    square = (drawn[0] > 180).float()
    red = (colored[0] > colored[2]).float()
    assert centre(square) == pytest.approx([79.5, 207.5], abs=0.1)
    assert centre(red) == pytest.approx([79.5, 207.5], abs=0.1)
    reddest = (blended[0].int() - blended[2].int()).clamp(min=0).float()
    assert centre(reddest) == pytest.approx([79.5, 207.5], abs=2)


def test_a_photo_keeps_its_proportions_and_its_place(tmp_path):
    photo = torch.zeros(3, 600, 300, dtype=torch.uint8)
    photo[0, :300] = 255
    drawn = drawn_panels(panels(photo, torch.zeros(1, 7, 7), ["portrait"]), tmp_path / "a.png")[0]
    assert drawn.shape == (3, 512, 256)
    assert (drawn[0, :254] > 250).all() and (drawn[0, 258:] < 5).all()


LONG = "a class whose name goes on and on, as names of classes sometimes do " * 3


@pytest.mark.parametrize("size", [(256, 384), (1000, 50), (50, 1000), (1, 1), (3000, 2000)])
@pytest.mark.parametrize("titles", [["tabby, 7.7 %", "$x_1$ & <b>, 0.1 %"], [LONG, LONG]])
def test_no_text_is_cut_off_or_touches_a_panel(size, titles):
    figure = panels(torch.zeros(3, *size, dtype=torch.uint8), torch.rand(2, 7, 7), titles)
    assert [text.get_text() for text in figure.texts] == ["photo", "heatmap", "overlay", *titles]
    boxes = [text.get_window_extent() for text in figure.texts]
    frames = [axes.get_window_extent() for axes in figure.axes]
    for box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert box.width > 0 and not box.count_overlaps(frames)
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes[:3]))


def test_a_title_is_never_read_as_a_formula(photo, heatmap, tmp_path):
    save(panels(photo, heatmap[:1], [r"$\nonsense{$"]), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0


def test_the_file_has_the_figure_s_size_and_the_suffix_its_format(photo, heatmap, tmp_path):
    figure = panels(photo, heatmap[:1], ["one"])
    for suffix, kind in ((".png", "PNG"), (".jpg", "JPEG")):
        save(figure, tmp_path / f"a{suffix}")
        with Image.open(tmp_path / f"a{suffix}") as picture:
            assert (picture.format, picture.mode, picture.size) == (kind, "RGB", (1200, 332))


def test_pyplot_is_never_imported(tmp_path):
    program = (
        "import sys, torch, gradcam_fast.figures as f;"
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


@pytest.mark.parametrize(
    ("shape", "heatmap_shape", "titles", "message"),
    [
        ((1, 8, 8), (1, 2, 2), ["a"], r"photo is \(1, 8, 8\) of torch.uint8; expected RGB"),
        ((3, 8, 8), (2, 2), ["a"], r"heatmap has shape \(2, 2\)"),
        ((3, 8, 8), (2, 2, 2), ["a"], r"there are 1 titles; expected \(K,h,w\) and K titles"),
        ((3, 8, 8), (0, 2, 2), [], "at least one"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(shape, heatmap_shape, titles, message):
    with pytest.raises(ValueError, match=message):
        panels(torch.zeros(shape, dtype=torch.uint8), torch.zeros(heatmap_shape), titles)
