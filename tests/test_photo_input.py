"""From a photo to an explanation and its picture: photos in any form, each map where the network looked."""

import warnings

import numpy
import pytest
import torch
from PIL import Image
from support.networks import ConvNet
from support.red_or_blue import NAMES, model, photo
from support.refusals import assert_says

import gradcam_fast
from gradcam_fast import Explainer, Explanation, Preprocess
from gradcam_fast.visual.placement import place

PREPROCESS = Preprocess(56, mean=(0,) * 3, std=(1,) * 3, crop=0.875, interpolation="box")


@pytest.fixture
def explainer():
    return Explainer(model(), preprocess=PREPROCESS, names=NAMES, probabilities="softmax")


def wide():
    """256 x 192 pixels, red in a square of 32 that is off the middle."""
    picture = Image.new("RGB", (256, 192))
    picture.paste("red", (144, 64, 176, 96))
    return picture


def hottest(picture):
    """The middle of the pixels that are more red than blue, (x, y)."""
    pixels = numpy.asarray(picture).astype(int)
    rows, columns = numpy.nonzero(pixels[..., 0] > pixels[..., 2] + 60)
    return columns.mean() + 0.5, rows.mean() + 0.5


def test_a_path_an_image_an_array_and_a_tensor_have_the_same_explanation(explainer, tmp_path):
    wide().save(tmp_path / "cat.png")
    array = numpy.array(wide())
    expected = explainer(wide())
    assert expected.target.tolist() == [0] and expected.names == NAMES and len(expected.photos) == 1
    for given in (
        tmp_path / "cat.png", str(tmp_path / "cat.png"), array, array / 255, [wide()], [array],
        torch.from_numpy(array).permute(2, 0, 1), [torch.from_numpy(array).permute(2, 0, 1) / 255],
    ):  # fmt: skip
        explanation = explainer(given)
        assert torch.equal(explanation.heatmap, expected.heatmap) and torch.equal(explanation.boxes, expected.boxes)
        assert torch.equal(explanation.photos[0], expected.photos[0])


def test_explaining_a_photo_is_explaining_what_preprocess_makes_of_it(explainer):
    images, boxes = PREPROCESS(wide())
    expected = gradcam_fast.explain(model(), images)
    explanation = explainer(wide())
    assert torch.equal(explanation.heatmap, expected.heatmap) and torch.equal(explanation.logits, expected.logits)
    assert torch.equal(explanation.boxes, boxes)
    function = gradcam_fast.explain(model(), wide(), preprocess=PREPROCESS, target=1)
    assert function.target.tolist() == [1] and function.photos is not None


def test_floating_tensors_stay_inputs_as_they_are(explainer):
    images = torch.rand(2, 3, 56, 56)
    explanation = explainer(images)
    assert explanation.photos is None and explanation.boxes is None
    assert torch.equal(explanation.logits, model()(images))


@pytest.mark.parametrize("turn", [0, 90])
def test_the_overlay_is_hot_where_the_photo_is_red(explainer, turn):
    picture = wide().rotate(turn, expand=True)
    blend = explainer(picture).overlay(alpha=1.0)
    assert blend.size == picture.size
    cell = 192 / 0.875 / 7 / 2
    assert hottest(blend) == pytest.approx(hottest(picture), abs=cell)
    corner = numpy.asarray(blend)[:4, :4]
    assert numpy.array_equal(corner, numpy.asarray(picture)[:4, :4])


def test_photos_of_several_sizes_are_explained_together(explainer):
    photos = [wide(), wide().rotate(90, expand=True), photo(scale=2)]
    explanation = explainer(photos, topk=2)
    assert explanation.heatmap.shape == (3, 2, 56, 56)
    pictures = explanation.overlay()
    assert [[picture.size for picture in of_image] for of_image in pictures] == [
        [(256, 192)] * 2, [(192, 256)] * 2, [(112, 112)] * 2,
    ]  # fmt: skip
    alone = explainer(photos[1], topk=2)
    assert torch.equal(explanation[1].heatmap, alone.heatmap) and torch.equal(explanation[1].boxes, alone.boxes)


def test_the_original_size_is_that_of_the_photo_with_nothing_where_nothing_was_seen():
    explainer = Explainer(model(), preprocess=PREPROCESS, size="original")
    explanation = explainer([wide(), wide()])
    assert explanation.heatmap.shape == (2, 192, 256) and explanation.boxes.tolist() == [[0, 0, 256, 192]] * 2
    usual = Explainer(model(), preprocess=PREPROCESS)(wide())
    shown, inside = place(usual.heatmap[0], (192, 256), tuple(usual.boxes[0].tolist()))
    assert torch.equal(explanation.heatmap[0], torch.where(inside, shown, 0))
    assert not explanation.heatmap[:, :, :20].any()
    with pytest.raises(ValueError) as refusal:
        explainer([wide(), photo()])
    assert_says(refusal, ValueError, ["size='original'", "(192, 256)", "(224, 224)", "one by one"])
    images = torch.rand(1, 3, 56, 64)
    assert Explainer(model(), size="original")(images).heatmap.shape == (1, 56, 64)


def test_photos_for_a_model_of_unknown_preprocessing_are_refused_with_the_ways_out():
    with pytest.raises(ValueError) as refusal:
        gradcam_fast.explain(ConvNet(), wide())
    assert_says(refusal, ValueError, ["preprocess=", "torchvision", "timm", "transformers", "Preprocess(size"])
    with pytest.raises(TypeError, match="int is no preprocessing that is known"):
        Explainer(ConvNet(), preprocess=3)


def test_a_model_of_timm_brings_its_own_preprocessing():
    timm = pytest.importorskip("timm")
    net = timm.create_model("test_vit").eval()
    explanation = gradcam_fast.explain(net, wide())
    assert torch.equal(explanation.boxes, Preprocess.of(net)(wide()).boxes)


def test_the_input_has_the_models_type():
    explanation = Explainer(model().double(), preprocess=PREPROCESS)(wide())
    assert explanation.logits.dtype == torch.float64


def test_show_and_save_draw_the_photo_and_its_map(explainer, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda picture: shown.append(picture))
    explanation = explainer(wide())
    explanation.show()
    explanation.save(tmp_path / "cat.png")
    with Image.open(tmp_path / "cat.png") as saved:
        assert numpy.array_equal(numpy.asarray(saved), numpy.asarray(shown[0]))
        assert saved.width > 1000
    explanation.save(tmp_path / "cat.jpg")
    assert Image.open(tmp_path / "cat.jpg").format == "JPEG"
    with pytest.raises(ValueError, match=r"cat.bmp2 has no suffix that is known; give \.npz, \.png or \.jpg"):
        explanation.save(tmp_path / "cat.bmp2")


def test_an_explanation_of_tensors_is_drawn_without_photos_or_with_those_given(explainer, tmp_path):
    explanation = explainer(PREPROCESS(wide()).images)
    explanation.save(tmp_path / "maps.png")
    with pytest.raises(ValueError, match=r"made of tensors, without photos .*preprocess="):
        explanation.overlay()
    with pytest.raises(ValueError, match="other pixels"):
        explanation.overlay(wide())
    square = wide().resize((56, 56))
    assert explanation.overlay(square).size == (56, 56)


def test_a_notebook_shows_a_small_picture_with_class_and_colour_bar(explainer):
    explanation = explainer([wide()] * 20, topk=2)
    png = explanation._repr_png_()
    assert png.startswith(b"\x89PNG") and explanation._repr_png_() is png
    assert "data:image/png;base64," in explanation._repr_html_()
    figure = gradcam_fast.figures.summary(explanation)
    texts = [text.get_text().replace("\n", " ").replace("\u00a0", " ") for text in figure.texts]
    best = explanation.top(1)[0][0]
    assert texts[0] == "the first 12 of 40 heatmaps" and texts[-2:] == ["0", "1"]
    assert texts[1].startswith(f"red (0), {100 * best.probability:.1f} %, score {best.score:.4g}")
    assert len(figure.axes) == 12


def test_what_cannot_be_drawn_has_no_picture_in_a_notebook():
    series = Explanation(*[torch.zeros(1, 1)] * 2, None, *[torch.zeros(1)] * 3, torch.ones(1, dtype=torch.bool), "a")
    assert series._repr_png_() is None and series._repr_html_() is None


def test_three_lines_go_from_a_photo_to_a_png_with_real_weights(tmp_path, monkeypatch):
    """The lines of docs/photos.md."""
    from support.documents import python_blocks

    pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.chdir(tmp_path)
    from support.command import CHELSEA

    Image.open(CHELSEA).convert("RGB").save("cat.jpg", quality=95)
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        exec(python_blocks("photos.md")[0], names)
    explanation = names["explanation"]
    assert "cat" in explanation.top(1)[0][0].name and explanation.top(1)[0][0].probability > 0.3
    with Image.open("cat.png") as picture:
        assert picture.width == 1200


def test_the_lines_about_boxes_in_the_documents_run():
    from support.documents import python_blocks

    names = {}
    exec(python_blocks("photos.md")[-1], names)
    assert names["picture"].shape == (1, 3, 480, 640) and names["images"].shape == (1, 3, 224, 224)
    assert not names["picture"][..., :30, :].any()
