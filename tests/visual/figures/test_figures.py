"""Photo, heatmap and overlay: every pixel where it belongs, all text inside and clear, no global state."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image
from support.drawn import assert_readable, pictures_in, texts_in

from gradcam_fast import Explanation, overlay
from gradcam_fast.visual.colormaps import colorize
from gradcam_fast.visual.edges import outlines
from gradcam_fast.visual.figures import explained, panels, save

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


def centre(weights):
    return [float((weights * ROWS).sum() / weights.sum()), float((weights * COLUMNS).sum() / weights.sum())]


def test_photo_heatmap_and_overlay_are_drawn_to_the_pixel(photo, heatmap, tmp_path):
    found = pictures_in(panels(photo, heatmap, ["one", "two"], colormap="viridis", alpha=0.4), tmp_path / "a.png")
    maps = torch.nn.functional.interpolate(heatmap[None], (256, 384), mode="bilinear")[0]
    assert len(found) == 6
    for i in range(2):
        assert torch.equal(found[3 * i], photo)
        assert torch.equal(found[3 * i + 1], colorize(maps[i], "viridis"))
        assert torch.equal(found[3 * i + 2], overlay(photo, maps[i], colormap="viridis", alpha=0.4)[0])


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_the_hot_cell_lies_on_the_bright_square_in_every_panel(photo, heatmap, tmp_path, scale):
    larger = photo.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    drawn, colored, blended = pictures_in(panels(larger, heatmap[:1], ["hot"]), tmp_path / "a.png")
    square = (drawn[0] > 180).float()
    red = (colored[0] > colored[2]).float()
    assert centre(square) == pytest.approx([79.5, 207.5], abs=0.1)
    assert centre(red) == pytest.approx([79.5, 207.5], abs=0.1)
    reddest = (blended[0].int() - blended[2].int()).clamp(min=0).float()
    assert centre(reddest) == pytest.approx([79.5, 207.5], abs=2)


def test_a_photo_keeps_its_proportions_and_its_place(tmp_path):
    photo = torch.zeros(3, 600, 300, dtype=torch.uint8)
    photo[0, :300] = 255
    drawn = pictures_in(panels(photo, torch.zeros(1, 7, 7), ["portrait"]), tmp_path / "a.png")[0]
    assert drawn.shape == (3, 512, 256)
    assert (drawn[0, :254] > 250).all() and (drawn[0, 258:] < 5).all()


def test_edges_and_an_alpha_for_each_value_are_drawn_too(photo, heatmap, tmp_path):
    figure = panels(photo, heatmap, ["one", "two"], alpha=heatmap, edges=True)
    found = pictures_in(figure, tmp_path / "a.png")
    maps = torch.nn.functional.interpolate(heatmap[None], (256, 384), mode="bilinear")[0]
    for i in range(2):
        assert torch.equal(found[3 * i], photo)
        assert torch.equal(found[3 * i + 2], overlay(photo, maps[i], alpha=maps[i], edges=True)[0])


def test_edges_of_a_tiny_photo_are_found_before_it_is_enlarged(tmp_path):
    photo = torch.zeros(3, 16, 24, dtype=torch.uint8)
    photo[:, 4:8, 12:16] = 255
    blended = pictures_in(panels(photo, torch.zeros(1, 2, 3), ["tiny"], alpha=0.0, edges=True), tmp_path / "a.png")[2]
    expected = outlines(photo[None])[0].repeat_interleave(16, 1).repeat_interleave(16, 2)
    assert (expected == 128).any()
    assert torch.equal(blended, expected.expand(3, -1, -1))


LONG = "a class whose name goes on and on, as names of classes sometimes do " * 2 + "and then ends"


@pytest.mark.parametrize("size", [(256, 384), (1000, 50), (50, 1000), (1, 1), (1500, 1000)])
@pytest.mark.parametrize("titles", [["tabby, 7.7 %", "$x_1$ & <b>, 0.1 %"], [LONG, "x" * 150]])
def test_no_text_is_cut_off_or_touches_a_panel(size, titles):
    figure = panels(torch.zeros(3, *size, dtype=torch.uint8), torch.rand(2, 7, 7), titles)
    assert [text.replace(" ", "") for text in texts_in(figure)] == [
        text.replace(" ", "") for text in ("photo", "heatmap", "overlay", *titles)
    ]
    assert len({text.get_fontsize() for text in figure.texts}) == 1
    assert_readable(figure)


def test_an_empty_title_takes_its_line_all_the_same(photo, heatmap):
    assert panels(photo, heatmap[:1], [""]).bbox.size.tolist() == panels(photo, heatmap[:1], ["a"]).bbox.size.tolist()


@pytest.fixture
def explanation():
    """Two images, two classes each, of five; the second map of the second image is empty."""
    logits = torch.tensor([[0.0, 3, 1, 0, 0], [2, 0, 0, 0, -1]])
    target = torch.tensor([[1, 2], [0, 4]])
    valid = torch.tensor([[True, True], [True, False]])
    score = logits.gather(1, target)
    return Explanation(torch.rand(2, 2, 8, 12), logits, target, score, score, score, valid, "layer4")


NAMES = ["tench", "goldfish", "shark", "ray", "cock"]


def test_an_explanation_is_drawn_with_a_row_for_each_photo_and_class(photo, explanation, tmp_path):
    portrait = torch.randint(0, 256, (3, 512, 256), dtype=torch.uint8)
    figure = explained([photo, portrait], explanation, NAMES, colormap="viridis")
    assert texts_in(figure)[3:] == [
        "goldfish (1), 77.8 %, score 3",
        "shark (2), 10.5 %, score 1",
        "tench (0), 68.7 %, score 2",
        "cock (4), 3.4 %, score -1 (empty map)",
    ]
    assert_readable(figure)
    found = pictures_in(figure, tmp_path / "a.png")
    shown_with = zip([photo] * 2 + [portrait] * 2, explanation.heatmap.flatten(0, 1), strict=True)
    for row, (shown, maps) in enumerate(shown_with):
        smooth = torch.nn.functional.interpolate(maps[None, None], shown.shape[1:], mode="bilinear")[0, 0]
        assert torch.equal(found[3 * row], shown)
        assert torch.equal(found[3 * row + 1], colorize(smooth, "viridis"))
        assert torch.equal(found[3 * row + 2], overlay(shown, smooth, colormap="viridis")[0])


def test_a_batch_of_photos_is_drawn_as_a_list_of_them(explanation, tmp_path):
    photos = torch.randint(0, 256, (2, 3, 20, 30), dtype=torch.uint8)
    one, other = tmp_path / "one.png", tmp_path / "other.png"
    save(explained(photos, explanation), one)
    save(explained(list(photos), explanation), other)
    assert one.read_bytes() == other.read_bytes()


def test_photos_that_were_not_explained_are_refused(photo, explanation):
    with pytest.raises(ValueError, match=r"there are 1 photos for heatmaps \(2, 2, 8, 12\); expected B photos"):
        explained([photo], explanation)


def test_maps_that_were_not_normalised_are_refused(photo):
    with pytest.raises(ValueError, match=r'heatmap ranges from -3 to -3.*use normalize="minmax"'):
        panels(photo, torch.full((1, 2, 2), -3.0), ["raw"])


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


@pytest.mark.parametrize(
    ("shape", "heatmap_shape", "titles", "message"),
    [
        ((1, 8, 8), (1, 2, 2), ["a"], r"photo is \(1, 8, 8\) of torch.uint8; expected RGB"),
        ((3, 0, 8), (1, 2, 2), ["a"], r"photo is \(3, 0, 8\)"),
        ((3, 8, 8), (2, 2), ["a"], r"heatmap has shape \(2, 2\)"),
        ((3, 8, 8), (2, 2, 2), ["a"], r"there are 1 titles; expected \(K,h,w\) and K titles"),
        ((3, 8, 8), (0, 2, 2), [], "at least one"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(shape, heatmap_shape, titles, message):
    with pytest.raises(ValueError, match=message):
        panels(torch.zeros(shape, dtype=torch.uint8), torch.zeros(heatmap_shape), titles)


def test_an_alpha_of_another_shape_is_refused(photo, heatmap):
    with pytest.raises(ValueError, match=r"alpha has shape \(2, 2\); expected the heatmap's \(2, 8, 12\)"):
        panels(photo, heatmap, ["one", "two"], alpha=torch.zeros(2, 2))
