"""A percentage is shown only where it is sure what the outputs are, and never contradicts the score beside it."""

import math
from types import SimpleNamespace

import pytest
import torch
from support.networks import ConvNet
from support.refusals import assert_says
from torch import nn

import gradcam_fast
from gradcam_fast.probabilities import check_rule, known_rule, probabilities_of

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 4.0, -3.0]])
NO_SUM = torch.tensor([[0.9, 0.8, 0.1]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_rows_that_add_up_to_one_are_probabilities_already(dtype, classes):
    given = torch.randn(3, classes).softmax(1).to(dtype)
    assert torch.equal(probabilities_of(given), given.float())
    assert torch.equal(probabilities_of(given, "classifier"), given.float())


def test_logits_of_nothing_known_have_no_probability():
    for rule in ("auto", None):
        assert probabilities_of(LOGITS, rule).isnan().all()
    assert probabilities_of(NO_SUM).isnan().all()
    assert probabilities_of(torch.tensor([[0.7], [3.0]])).isnan().all()


def test_what_is_told_is_done():
    assert torch.equal(probabilities_of(LOGITS, "softmax"), LOGITS.softmax(1))
    assert torch.equal(probabilities_of(LOGITS, "sigmoid"), LOGITS.sigmoid())
    assert torch.equal(probabilities_of(NO_SUM, "given"), NO_SUM)
    assert torch.equal(probabilities_of(NO_SUM, "softmax"), NO_SUM.softmax(1))
    assert torch.equal(probabilities_of(torch.tensor([[1.0]]), "sigmoid"), torch.tensor([[1.0]]).sigmoid())


def test_values_outside_of_zero_to_one_are_not_given_probabilities_and_one_output_has_no_softmax():
    assert probabilities_of(LOGITS, "given").isnan().all()
    assert probabilities_of(torch.tensor([[3.0]]), "softmax").isnan().all()


def test_a_row_has_the_same_probabilities_alone_and_in_a_batch():
    batch = torch.cat([LOGITS, NO_SUM, LOGITS.softmax(1)])
    rows = torch.cat([probabilities_of(row[None]) for row in batch])
    torch.testing.assert_close(probabilities_of(batch), rows, rtol=0, atol=0, equal_nan=True)
    assert rows.isnan().all(1).tolist() == [True, True, True, False, False]


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError) as refusal:
        check_rule("logits")
    assert_says(refusal, ValueError, ["probabilities='logits'", "softmax", "sigmoid", "given", "None"])


def configured(**config):
    model = nn.Linear(2, 3)
    model.config = SimpleNamespace(**config)
    return model


class FakeForImageClassification(nn.Linear):
    config = SimpleNamespace(problem_type=None, num_labels=3)


def published(outputs, classes):
    model = nn.Linear(2, outputs)
    model.pretrained_cfg = {"num_classes": classes}
    return model


@pytest.mark.parametrize(
    ("model", "outputs", "rule"),
    [
        (configured(problem_type="multi_label_classification"), 3, "sigmoid"),
        (configured(problem_type="single_label_classification"), 3, "classifier"),
        (configured(problem_type="regression"), 3, None),
        (configured(problem_type=None), 3, "auto"),
        (FakeForImageClassification(2, 3), 3, "classifier"),
        (nn.Sequential(nn.Linear(2, 3), nn.Sigmoid()), 3, "given"),
        (nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU(), nn.Softmax(1))), 3, "given"),
        (nn.Sequential(nn.Sigmoid(), nn.Linear(2, 3)), 3, "auto"),
        (published(1000, 1000), 1000, "classifier"),
        (published(14, 1000), 14, "auto"),  # a new head: what it was trained for is not known
        (published(512, 512), 512, "auto"),  # an embedding, as of CLIP
        (nn.Sequential(nn.Identity(), published(1000, 1000)), 1000, "classifier"),
        (nn.Sequential(configured(problem_type="multi_label_classification")), 3, "sigmoid"),
        (nn.Linear(2, 1000), 1000, "auto"),
        (nn.Linear(2, 1), 1, "auto"),
    ],
)
def test_a_model_says_what_its_outputs_are_where_it_can(model, outputs, rule):
    assert known_rule(model, outputs) == rule


def test_names_of_imagenet_make_a_classifier_and_other_names_do_not():
    imagenet = ["tench, Tinca tinca", *map(str, range(998)), "toilet tissue, toilet paper"]
    assert known_rule(nn.Linear(2, 1000), 1000, imagenet) == "classifier"
    assert known_rule(published(1000, 1000), 1000, list(map(str, range(1000)))) == "auto"


def test_networks_of_torchvision_are_classifiers_of_imagenet_and_nothing_else():
    models = pytest.importorskip("torchvision.models")
    assert known_rule(models.squeezenet1_1(), 1000) == "classifier"
    assert known_rule(models.squeezenet1_1(num_classes=14), 14) == "auto"


class Ending(ConvNet):
    """The network, with another module behind its logits."""

    def __init__(self, end):
        super().__init__()
        self.end = end

    def forward(self, images):
        return self.end(super().forward(images))


def test_a_network_that_ends_in_softmax_shows_its_own_outputs(images):
    figures = pytest.importorskip("gradcam_fast.visual.figures")
    explanation = gradcam_fast.explain(Ending(nn.Softmax(1)), images, topk=2, layer="features.3")
    for image in range(3):
        for title, score in zip(figures.class_titles(explanation, image), explanation.score[image], strict=True):
            assert title.split(", ")[1:] == [f"{100 * score:.1f} %", f"score {score:.4g}"]


def test_a_network_that_ends_in_sigmoid_shows_its_own_outputs(images):
    explanation = gradcam_fast.explain(Ending(nn.Sigmoid()), images, topk=2, layer="features.3")
    assert torch.equal(explanation.probabilities, explanation.logits)


def test_logits_of_a_network_of_nothing_known_show_scores_alone_unless_it_is_told(images):
    model = ConvNet()
    explanation = gradcam_fast.explain(model, images, layer="features.3")
    assert explanation.probabilities.isnan().all()
    told = gradcam_fast.explain(model, images, layer="features.3", probabilities="sigmoid")
    assert torch.equal(told.probabilities, told.logits.sigmoid())
    told = gradcam_fast.Explainer(model, layer="features.3", probabilities="softmax")(images)
    assert torch.equal(told.probabilities, told.logits.softmax(1))
    with pytest.raises(ValueError, match="probabilities='soft' is unknown"):
        gradcam_fast.Explainer(model, probabilities="soft")


def test_a_callable_target_has_no_probabilities(images):
    explanation = gradcam_fast.explain(ConvNet(), images, target=lambda out: out[:, 0], layer="features.3")
    assert explanation.probabilities is None


def test_numbers_as_text():
    from gradcam_fast.probabilities import confidence

    assert confidence(0.77085, 0.7709) == "77.1 %" and confidence(math.nan, 0.7709) == "score 0.7709"


def test_names_of_imagenet_given_to_a_figure_tell_what_the_outputs_are():
    figures = pytest.importorskip("gradcam_fast.visual.figures.explanation_figures")
    names = ["tench", *map(str, range(998)), "toilet tissue"]
    logits = torch.randn(1000)
    lines, probabilities = figures.top_classes(logits, names)
    assert probabilities[0] == pytest.approx(float(logits.softmax(0).max())) and "%" in lines[0]
    assert "score" in figures.top_classes(logits)[0][0]


def test_an_explainer_tells_the_rule_of_its_explanations():
    images = torch.rand(1, 3, 8, 8)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    for model, choices, rule in (
        (network, {}, "auto"),
        (nn.Sequential(network, nn.Softmax(1)), {}, "given"),
        (network, {"probabilities": "sigmoid"}, "sigmoid"),
        (network, {"probabilities": None}, None),
    ):
        explainer = gradcam_fast.Explainer(model.eval(), layer=None, **choices)
        assert explainer.probability_rule(3) == explainer(images).probability_rule == rule
