"""The words beside maps, and the figure of the most probable classes."""

import pytest
import torch
from support.drawn import assert_readable, pictures_in, texts_in
from support.networks import ConvNet, Shaped

import gradcam_fast
from gradcam_fast.visual.figures import classes
from gradcam_fast.visual.figures.captions import class_titles, most_probable

NAMES = ["tench", "goldfish", "shark", "ray", "cock"]


def test_titles_name_the_class_its_probability_and_its_raw_score(images):
    model = ConvNet()
    found = gradcam_fast.explain(model, images, topk=2, layer="features.3")
    for image in range(3):
        titles = class_titles(found, image, NAMES)
        best = found.logits[image].argmax()
        probability, score = 100 * found.logits[image].softmax(0)[best], found.logits[image, best]
        assert titles[0] == f"{NAMES[best]} ({best}), {probability:.1f} %, score {score:.4g}"
        assert len(titles) == 2
        assert class_titles(found, image)[0] == f"class {best}, {probability:.1f} %, score {score:.4g}"


def test_an_output_without_classes_has_a_score_only(images):
    found = gradcam_fast.explain(Shaped(1, 1, 1), images, layer="features.3")
    assert class_titles(found, 1)[0].split(" (")[0] == f"score {found.score[1]:.4g}"


def test_the_scores_of_a_callable_are_numbered(images):
    found = gradcam_fast.explain(ConvNet(), images, target=lambda out: out[:, :2] * 2, layer="features.3", relu=False)
    assert class_titles(found, 0, NAMES) == [f"target {k}, score {found.score[0, k]:.4g}" for k in range(2)]


def test_the_most_probable_classes_come_in_order():
    logits = torch.tensor([0.0, 2.0, 1.0, -1.0, 1.5], dtype=torch.float16)
    lines, probabilities = most_probable(logits, NAMES, count=3)
    assert lines == ["46.3 %  goldfish (1)", "28.1 %  cock (4)", "17.0 %  shark (2)"]
    assert probabilities == pytest.approx([0.4631, 0.2809, 0.1703], abs=1e-4)
    assert len(most_probable(logits, count=9)[0]) == 5


def test_bars_are_as_long_as_their_classes_are_probable(tmp_path):
    photo = torch.randint(0, 256, (3, 256, 384), dtype=torch.uint8)
    logits = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625]).log()
    figure = classes(photo, logits, NAMES, count=3)
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
    figure = classes(torch.zeros(3, *size, dtype=torch.uint8), torch.randn(5), names)
    assert len(figure.texts) == 5 and all("\n" in text.get_text() for text in figure.texts)
    assert_readable(figure)


def test_too_few_names_are_refused(images):
    explanation = gradcam_fast.explain(ConvNet(), images)
    with pytest.raises(ValueError, match="there are 1 names for 5 classes; give one for each"):
        class_titles(explanation, names=["a"])


def test_logits_of_a_batch_and_names_of_other_classes_are_refused():
    photo = torch.zeros(3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"logits has shape \(1, 5\), with no names; expected \(N,\), of one photo"):
        classes(photo, torch.zeros(1, 5))
    with pytest.raises(ValueError, match=r"logits has shape \(4,\), with 5 names"):
        classes(photo, torch.zeros(4), NAMES)
