"""Figures of an explanation: pixels of photo, heatmap and overlay at their places, readable titles, classes."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from support.drawn import assert_readable, pictures_in, texts_in
from support.networks import ConvNet, Shaped

import gradcam_fast
from gradcam_fast import Explanation, Preprocess, overlay
from gradcam_fast.visual.colormaps import colorize
from gradcam_fast.visual.edges import outlines
from gradcam_fast.visual.figures import class_titles, classes, explained, panels, save
from gradcam_fast.visual.figures.explanation_figures import UNSEEN, top_classes
from gradcam_fast.visual.figures.page import Page

ROWS, COLUMNS = torch.arange(256.0)[:, None], torch.arange(384.0)


@pytest.fixture
def photo():
    """Noise with a white square, of a panel's own size, so that nothing is resized."""
    photo = torch.randint(0, 100, (3, 256, 384), dtype=torch.uint8)
    photo[:, 64:96, 192:224] = 255
    return photo


@pytest.fixture
def heatmap():
    """Two maps of 8 x 12 cells of 32 pixels each; in the first only the cell on the white square is 1."""
    maps = torch.zeros(2, 8, 12)
    maps[0, 2, 6] = 1
    maps[1] = torch.rand(8, 12)
    return maps


def centre(weights):
    return [float((weights * ROWS).sum() / weights.sum()), float((weights * COLUMNS).sum() / weights.sum())]


def test_photo_heatmap_and_overlay_are_drawn_pixel_for_pixel(photo, heatmap, tmp_path):
    pictures = pictures_in(panels(photo, heatmap, ["one", "two"], colormap="viridis", alpha=0.4), tmp_path / "a.png")
    maps = torch.nn.functional.interpolate(heatmap[None], (256, 384), mode="bilinear")[0]
    assert len(pictures) == 6
    for i in range(2):
        assert torch.equal(pictures[3 * i], photo)
        assert torch.equal(pictures[3 * i + 1], colorize(maps[i], "viridis"))
        assert torch.equal(pictures[3 * i + 2], overlay(photo, maps[i], colormap="viridis", alpha=0.4)[0])


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_the_hot_cell_lies_on_the_bright_square_in_every_panel(photo, heatmap, tmp_path, scale):
    larger = photo.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    shown, colors, blend = pictures_in(panels(larger, heatmap[:1], ["hot"]), tmp_path / "a.png")
    square = (shown[0] > 180).float()
    red = (colors[0] > colors[2]).float()
    assert centre(square) == pytest.approx([79.5, 207.5], abs=0.1)
    assert centre(red) == pytest.approx([79.5, 207.5], abs=0.1)
    reddest = (blend[0].int() - blend[2].int()).clamp(min=0).float()
    assert centre(reddest) == pytest.approx([79.5, 207.5], abs=2)


def test_a_photo_keeps_its_proportions_and_its_place(tmp_path):
    photo = torch.zeros(3, 600, 300, dtype=torch.uint8)
    photo[0, :300] = 255
    shown = pictures_in(panels(photo, torch.zeros(1, 14, 7), ["portrait"]), tmp_path / "a.png")[0]
    assert shown.shape == (3, 512, 256)
    assert (shown[0, :254] > 250).all() and (shown[0, 258:] < 5).all()


def test_panels_take_edges_and_an_alpha_for_each_value(photo, heatmap, tmp_path):
    figure = panels(photo, heatmap, ["one", "two"], alpha=heatmap, edges=True)
    pictures = pictures_in(figure, tmp_path / "a.png")
    maps = torch.nn.functional.interpolate(heatmap[None], (256, 384), mode="bilinear")[0]
    for i in range(2):
        assert torch.equal(pictures[3 * i], photo)
        assert torch.equal(pictures[3 * i + 2], overlay(photo, maps[i], alpha=maps[i], edges=True)[0])


def test_edges_of_a_tiny_photo_are_found_before_it_is_enlarged(tmp_path):
    photo = torch.zeros(3, 16, 24, dtype=torch.uint8)
    photo[:, 4:8, 12:16] = 255
    blend = pictures_in(panels(photo, torch.zeros(1, 2, 3), ["tiny"], alpha=0.0, edges=True), tmp_path / "a.png")[2]
    expected = outlines(photo[None])[0].repeat_interleave(16, 1).repeat_interleave(16, 2)
    assert (expected == 128).any()
    assert torch.equal(blend, expected.expand(3, -1, -1))


LONG = "a class whose name goes on and on, as names of classes sometimes do " * 2 + "and then ends"


@pytest.mark.parametrize("size", [(256, 384), (1000, 50), (50, 1000), (1, 1), (1500, 1000)])
@pytest.mark.parametrize("titles", [["tabby, 7.7 %", "$x_1$ & <b>, 0.1 %"], [LONG, "x" * 150]])
def test_no_text_is_cut_off_or_touches_a_panel(size, titles):
    figure = panels(torch.zeros(3, *size, dtype=torch.uint8), torch.rand(2, 7, 7), titles, box="whole")
    assert [text.replace(" ", "") for text in texts_in(figure)] == [
        text.replace(" ", "") for text in ("photo", "heatmap", "overlay", *titles, "0", "1")
    ]
    assert len({text.get_fontsize() for text in figure.texts[:-2]}) == 1
    assert_readable(figure)


@pytest.mark.parametrize("name", ["x" * 100_000, "r " * 50_000, "a\n" * 50_000])
def test_a_title_of_100000_characters_is_cut_before_it_is_measured(photo, heatmap, monkeypatch, name):
    measured, measure = [], Page._measure
    monkeypatch.setattr(Page, "_measure", lambda page, text, style: measured.append(text) or measure(page, text, style))
    figure = panels(photo, heatmap, [name, "tabby"])
    assert sum(map(len, measured)) < 10_000
    assert figure.bbox.height < panels(photo, heatmap, ["tabby", "tabby"]).bbox.height + 300
    (shown,) = (
        text.get_text() for text in figure.texts if text.get_text().startswith(name[0]) and "…" in text.get_text()
    )
    assert len(shown) <= 520 and shown.endswith("…")


def test_an_empty_title_takes_a_line_too(photo, heatmap):
    assert panels(photo, heatmap[:1], [""]).bbox.size.tolist() == panels(photo, heatmap[:1], ["a"]).bbox.size.tolist()


@pytest.fixture
def explanation():
    """Two images, two classes each, of five; the second map of the second image is empty."""
    logits = torch.tensor([[0.0, 3, 1, 0, 0], [2, 0, 0, 0, -1]])
    target = torch.tensor([[1, 2], [0, 4]])
    valid = torch.tensor([[True, True], [True, False]])
    score = logits.gather(1, target)
    return Explanation(
        torch.rand(2, 2, 8, 12), logits, target, score, score, score, valid, "layer4", probability_rule="softmax"
    )


NAMES = ["tench", "goldfish", "shark", "ray", "cock"]


def test_an_explanation_is_drawn_with_a_row_for_each_photo_and_class(photo, explanation, tmp_path):
    portrait = torch.randint(0, 256, (3, 512, 256), dtype=torch.uint8)
    figure = explained([photo, portrait], explanation, NAMES, boxes="whole", colormap="viridis")
    assert texts_in(figure)[3:-2] == [
        "goldfish (1), 77.8 %, score 3",
        "shark (2), 10.5 %, score 1",
        "tench (0), 68.7 %, score 2",
        "cock (4), 3.4 %, score -1 (empty map)",
    ]
    assert_readable(figure)
    pictures = pictures_in(figure, tmp_path / "a.png")
    rows = zip([photo] * 2 + [portrait] * 2, explanation.heatmap.flatten(0, 1), strict=True)
    for row, (shown, heatmap) in enumerate(rows):
        full = torch.nn.functional.interpolate(heatmap[None, None], shown.shape[1:], mode="bilinear")[0, 0]
        assert torch.equal(pictures[3 * row], shown)
        assert torch.equal(pictures[3 * row + 1], colorize(full, "viridis"))
        assert torch.equal(pictures[3 * row + 2], overlay(shown, full, colormap="viridis")[0])


def test_a_batch_of_photos_is_drawn_as_a_list_of_them(explanation, tmp_path):
    photos = torch.randint(0, 256, (2, 3, 20, 30), dtype=torch.uint8)
    one, other = tmp_path / "one.png", tmp_path / "other.png"
    save(explained(photos, explanation), one)
    save(explained(list(photos), explanation), other)
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("size", [(640, 480), (480, 640)])
@pytest.mark.parametrize("options", [{"crop": 0.8}, {"fit": "stretch"}, {"fit": "letterbox"}])
def test_the_map_of_a_prepared_photo_lies_where_the_network_looked(options, size, tmp_path):
    photo = Image.new("RGB", size)
    photo.paste("white", (250, 200, 330, 280))
    images, boxes = Preprocess(96, mean=(0,) * 3, std=(1,) * 3, **options)(photo)
    figure = panels(photo, images[:, 0], ["square"], box=boxes)
    shown, colors, blend = pictures_in(figure, tmp_path / "a.png")
    square, red = (shown[0] > 127).nonzero(), (colors[0] > colors[2]).nonzero()
    pixel = shown.shape[2] / 60
    assert (square.amin(0) - red.amin(0)).abs().max() <= pixel and (square.amax(0) - red.amax(0)).abs().max() <= pixel
    left, top, right, bottom = (boxes[0] * shown.shape[2] / size[0]).tolist()
    y, x = torch.meshgrid(*(torch.arange(side) + 0.5 for side in shown.shape[1:]), indexing="ij")
    outside = (x < left) | (x > right) | (y < top) | (y > bottom)
    assert outside.any() == ("crop" in options)
    assert torch.equal(blend[:, outside], shown[:, outside]) and colors[:, outside].eq(UNSEEN).all()


def test_a_map_of_other_proportions_than_its_photo_is_refused_with_the_way_out(photo, explanation):
    square = replace(explanation, heatmap=torch.rand(2, 2, 224, 224))
    with pytest.raises(ValueError, match=r"224 x 224 has other proportions .* 256 x 384 .*box=.*Preprocess.*'whole'"):
        explained([photo, photo], square)
    boxes = Preprocess(224, crop=0.875)([photo, photo]).boxes
    assert len(explained([photo, photo], replace(square, boxes=boxes)).axes) == 12


def test_another_number_of_photos_than_heatmaps_is_refused(photo, explanation):
    with pytest.raises(ValueError, match=r"len\(photos\) is 1 but .* \(2, 2, 8, 12\); expected B photos"):
        explained([photo], explanation)


def test_maps_that_were_not_normalised_are_refused(photo):
    with pytest.raises(ValueError, match=r'heatmap ranges from -3 to -3.*use normalize="minmax"'):
        panels(photo, torch.full((1, 2, 2), -3.0), ["raw"])


@pytest.mark.parametrize(
    ("shape", "heatmap_shape", "titles", "message"),
    [
        ((2, 8, 8), (1, 2, 2), ["a"], r"photo is a tensor of shape \(2, 8, 8\); expected"),
        ((3, 0, 8), (1, 2, 2), ["a"], r"photo has shape \(3, 0, 8\)"),
        ((3, 80, 120), (1, 20, 20), ["a"], r"heatmap of 20 x 20 has other proportions .* 80 x 120 .*box=.*'whole'"),
        ((3, 8, 8), (2, 2), ["a"], r"heatmap has shape \(2, 2\)"),
        ((3, 8, 8), (2, 2, 2), ["a"], r"len\(titles\) is 1; expected \(K,h,w\) and K titles"),
        ((3, 8, 8), (0, 2, 2), [], "at least one"),
    ],
)
def test_wrong_arguments_of_panels_are_refused_in_a_sentence(shape, heatmap_shape, titles, message):
    with pytest.raises(ValueError, match=message):
        panels(torch.zeros(shape, dtype=torch.uint8), torch.zeros(heatmap_shape), titles)


def test_an_alpha_of_another_shape_is_refused(photo, heatmap):
    with pytest.raises(ValueError, match=r"alpha has shape \(2, 2\); expected the heatmap's \(2, 8, 12\)"):
        panels(photo, heatmap, ["one", "two"], alpha=torch.zeros(2, 2))


def test_titles_name_the_class_its_probability_and_its_raw_score(images):
    model = ConvNet()
    explanation = gradcam_fast.explain(model, images, topk=2, layer="features.3")
    assert class_titles(explanation)[0] == f"class {explanation.target[0, 0]}, score {explanation.score[0, 0]:.4g}"
    explanation = replace(explanation, probability_rule="softmax")
    for image in range(3):
        titles = class_titles(explanation, image, NAMES)
        best = explanation.logits[image].argmax()
        probability, score = 100 * explanation.logits[image].softmax(0)[best], explanation.logits[image, best]
        assert titles[0] == f"{NAMES[best]} ({best}), {probability:.1f} %, score {score:.4g}"
        assert len(titles) == 2
        assert class_titles(explanation, image)[0] == f"class {best}, {probability:.1f} %, score {score:.4g}"


def test_an_output_without_classes_has_a_score_only(images):
    explanation = gradcam_fast.explain(Shaped(1, 1, 1), images, layer="features.3")
    assert class_titles(explanation, 1)[0].split(" (")[0] == f"score {explanation.score[1]:.4g}"


def test_the_scores_of_a_callable_are_numbered(images):
    explanation = gradcam_fast.explain(
        ConvNet(), images, target=lambda out: out[:, :2] * 2, layer="features.3", relu=False
    )
    assert class_titles(explanation, 0, NAMES) == [f"target {k}, score {explanation.score[0, k]:.4g}" for k in range(2)]


def test_the_most_probable_classes_come_in_order():
    logits = torch.tensor([0.0, 2.0, 1.0, -1.0, 1.5], dtype=torch.float16)
    lines, probabilities = top_classes(logits, NAMES, count=3, probabilities="softmax")
    assert lines == ["46.3 %  goldfish (1)", "28.1 %  cock (4)", "17.0 %  shark (2)"]
    assert probabilities == pytest.approx([0.4631, 0.2809, 0.1703], abs=1e-4)
    assert len(top_classes(logits, count=9)[0]) == 5


def test_without_probabilities_the_classes_have_scores_and_no_bars():
    figure = classes(torch.zeros(3, 8, 8, dtype=torch.uint8), torch.tensor([0.5, 3.0, -1.0]), NAMES[:3])
    assert texts_in(figure) == ["score 3  goldfish (1)", "score 0.5  tench (0)", "score -1  shark (2)"]
    assert not figure.artists


def test_bars_are_as_long_as_their_classes_are_probable(tmp_path):
    photo = torch.randint(0, 256, (3, 256, 384), dtype=torch.uint8)
    logits = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625]).log()
    figure = classes(photo, logits, NAMES, count=3, probabilities="softmax")
    assert texts_in(figure) == ["50.0 %  tench (0)", "25.0 %  goldfish (1)", "12.5 %  shark (2)"]
    bars = [patch.get_window_extent() for patch in figure.artists]
    assert [bar.width for bar in bars] == pytest.approx([384, 192, 384, 96, 384, 48])
    assert {round(bar.x0) for bar in bars} == {12}
    for text, bar in zip(figure.texts, bars[::2], strict=True):
        assert 0 < text.get_window_extent().y0 - bar.y1 < 12
    assert torch.equal(pictures_in(figure, tmp_path / "a.png")[0], photo)
    assert_readable(figure)


@pytest.mark.parametrize("size", [(1000, 50), (50, 1000), (1, 1)])
def test_long_names_of_classes_can_be_read_beside_photos_of_any_shape(size):
    names = ["a class whose name goes on and on, as names of classes sometimes do " * 2] * 5
    figure = classes(torch.zeros(3, *size, dtype=torch.uint8), torch.randn(5), names, probabilities="softmax")
    assert len(figure.texts) == 5 and all("\n" in text.get_text() for text in figure.texts)
    assert_readable(figure)


def test_too_few_names_are_refused(images):
    explanation = gradcam_fast.explain(ConvNet(), images)
    with pytest.raises(ValueError, match=r"len\(names\) is 1 for 5 classes; give one name per class"):
        class_titles(explanation, names=["a"])


def test_logits_of_a_batch_and_names_of_other_classes_are_refused():
    photo = torch.zeros(3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"logits has shape \(1, 5\) and names=None; expected \(N,\), of one photo"):
        classes(photo, torch.zeros(1, 5))
    with pytest.raises(ValueError, match=r"logits has shape \(4,\) and len\(names\)=5"):
        classes(photo, torch.zeros(4), NAMES)
