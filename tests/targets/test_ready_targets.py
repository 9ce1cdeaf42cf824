"""Ready targets for similarity, regression and probabilities, against scores and maps computed by hand.

Segmentation, detection and wrong arguments have files of their own.
"""

import pytest
import torch
from support.networks import ConvNet, Shaped, stateless
from support.tolerances import SAME_INPUTS
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

import gradcam_fast
from gradcam_fast import targets

TOLERANCE = SAME_INPUTS[torch.float32]
LAYER = "features.3"


def assert_close(actual, expected, scale=1.0):
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE * scale)


@pytest.fixture
def photos():
    return torch.rand(2, 3, 64, 64)


@pytest.fixture(scope="module")
def headless():
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model = models.resnet18(weights=None).eval()
    model.fc = torch.nn.Identity()
    return model


def test_an_image_has_similarity_1_to_itself_and_its_map_adds_up_to_1(headless, photos):
    with torch.inference_mode():
        own = headless(photos)
        explanation = gradcam_fast.explain(
            headless, photos, target=targets.similarity(own.unsqueeze(1)), layer="layer4", size=2, normalize="none",
            relu=False,
        )  # fmt: skip
    assert explanation.valid.all() and explanation.score.shape == (2, 1)
    assert_close(explanation.score, torch.ones(2, 1))
    assert_close(explanation.heatmap.sum((2, 3)), explanation.score)


def test_the_cosine_with_its_length_differentiated_has_no_map_for_an_image_equal_to_its_reference(headless, photos):
    with torch.no_grad():
        own = headless(photos)
    raw = {"layer": "layer4", "normalize": "none", "relu": False}
    ready = gradcam_fast.explain(headless, photos, target=targets.similarity(own.unsqueeze(1)), **raw)
    plain = gradcam_fast.explain(headless, photos, target=lambda out: F.cosine_similarity(out, own), **raw)
    assert (plain.heatmap.abs().amax((1, 2)) < 1e-4 * ready.heatmap[:, 0].abs().amax((1, 2))).all()


@pytest.mark.parametrize("shape", [(512,), (3, 512), (2, 3, 512)])
def test_the_score_of_similarity_is_the_cosine_and_its_map_that_of_the_dot_product(shape, headless, photos):
    references = torch.rand(shape)
    explanation = gradcam_fast.explain(headless, photos, target=targets.similarity(references), layer="layer3")
    embeddings = explanation.logits if len(shape) == 1 else explanation.logits.unsqueeze(1)
    assert_close(explanation.score, F.cosine_similarity(embeddings, references, dim=-1))
    dots = (lambda out: out @ references) if len(shape) == 1 else lambda out: (out.unsqueeze(1) * references).sum(2)
    assert_close(explanation.heatmap, gradcam_fast.explain(headless, photos, target=dots, layer="layer3").heatmap)


def test_embeddings_of_zeros_have_similarity_0():
    zero = torch.zeros(2, 4, requires_grad=True)
    score = targets.similarity(torch.ones(4))(zero)
    score.sum().backward()
    assert score.tolist() == [0, 0] and zero.grad.isfinite().all()
    assert targets.similarity(torch.zeros(4))(torch.ones(2, 4)).tolist() == [0, 0]


def test_a_regression_with_one_output_needs_no_index(images):
    for model in (ConvNet(classes=1), Shaped(), Shaped(1, 1, 1)):
        explanation = gradcam_fast.explain(model, images, target=targets.regression(), layer=LAYER)
        expected = gradcam_fast.explain(model, images, layer=LAYER)
        assert torch.equal(explanation.score, expected.score) and torch.equal(explanation.heatmap, expected.heatmap)


@pytest.mark.parametrize("index", [2, [2], [2, 0], (0, 1, 2)])
def test_a_regression_with_several_outputs_takes_one_index_or_several(index, images):
    model = ConvNet(classes=3)
    explanation = gradcam_fast.explain(model, images, target=targets.regression(index), layer=LAYER)
    expected = gradcam_fast.explain(model, images, target=lambda output: output[:, index], layer=LAYER)
    assert torch.equal(explanation.score, explanation.logits[:, index])
    assert torch.equal(explanation.heatmap, expected.heatmap)


def test_the_map_is_negative_where_the_image_lowers_the_number(images):
    model, raw = ConvNet(classes=1), {"layer": LAYER, "normalize": "none", "relu": False}
    explanation = gradcam_fast.explain(model, images, target=targets.regression(), **raw)
    lowered = gradcam_fast.explain(model, images, target=lambda output: -output[:, 0], **raw)
    assert (explanation.raw_min < 0).all() and torch.equal(explanation.heatmap, -lowered.heatmap)


def test_the_map_of_a_probability_is_that_of_its_logit_less_the_weighted_mean_of_all(images):
    model, everything = ConvNet(), [0, 1, 2, 3, 4]
    raw = {"layer": LAYER, "normalize": "none", "relu": False}
    logits = gradcam_fast.explain(model, images, target=[everything] * 3, **raw)
    explanation = gradcam_fast.explain(model, images, target=targets.probability(everything), **raw)
    p = logits.logits.softmax(1)
    assert_close(explanation.score, p)
    average = (p[:, :, None, None] * logits.heatmap).sum(1, keepdim=True)
    expected = p[:, :, None, None] * (logits.heatmap - average)
    assert_close(explanation.heatmap, expected, expected.abs().max().item())


def test_the_map_of_a_probability_is_that_of_the_loss_and_not_of_the_logit(images):
    model = ConvNet()
    logit = gradcam_fast.explain(model, images, target=3, layer=LAYER).heatmap
    probability = gradcam_fast.explain(model, images, target=targets.probability(3), layer=LAYER).heatmap
    category = torch.full((3,), 3)
    loss = gradcam_fast.explain(
        model, images, target=lambda output: -F.cross_entropy(output, category, reduction="none"), layer=LAYER
    )
    assert (logit - probability).abs().amax((1, 2)).max() > 0.1
    assert_close(probability, loss.heatmap)


def test_a_temperature_changes_the_map_of_the_probability_and_not_of_the_logit(images):
    model = ConvNet()
    cold = {"output": lambda output: output * 10, "layer": LAYER}
    for target, same in ((3, True), (targets.probability(3), False)):
        plain = gradcam_fast.explain(model, images, target=target, layer=LAYER).heatmap
        divided = gradcam_fast.explain(model, images, target=target, **cold).heatmap
        assert ((plain - divided).abs().max() < TOLERANCE) == same


def test_a_class_the_model_is_sure_of_has_a_map_for_its_logit_and_none_for_its_probability(images):
    model = stateless()
    sure = {"output": lambda output: torch.cat([output[:, :4], output[:, 4:] + 200], 1), "layer": LAYER}
    logit = gradcam_fast.explain(model, images, target=4, **sure)
    with pytest.warns(UserWarning, match="zero everywhere"):
        explanation = gradcam_fast.explain(model, images, target=targets.probability(4), **sure)
    assert logit.valid.all()
    assert explanation.score.tolist() == [1, 1, 1] and not explanation.valid.any() and not explanation.heatmap.any()


DENSE, ROWS = torch.randn(2, 3, 4, 4), torch.randn(2, 3)
BOX = [[0.0, 0.0, 2.0, 2.0]]
DENSE_BOXES = torch.cat([torch.rand(2, 4, 9), torch.rand(2, 3, 9)], 1)
PREDICTION = {"boxes": torch.rand(5, 4), "labels": torch.ones(5, dtype=torch.long), "scores": torch.rand(5)}
TARGETS_AND_OUTPUTS = {
    "segmentation": (targets.segmentation([0, 1], torch.ones(4, 4, dtype=torch.bool)), DENSE),
    "similarity": (targets.similarity(torch.ones(3)), ROWS),
    "regression": (targets.regression([0, 2]), ROWS),
    "probability": (targets.probability([0, 2]), ROWS),
    "binary": (targets.binary(), ROWS[:, :1]),
    "finer": (targets.finer(), ROWS),
    "finer of listed rivals": (targets.finer([0, 2], [1], weights="softmax"), ROWS),
    "dense detection": (targets.detection([BOX] * 2, [[1]] * 2), DENSE_BOXES),
    "detection": (targets.detection(BOX, [1]), [PREDICTION]),
}


@pytest.mark.parametrize("name", TARGETS_AND_OUTPUTS)
def test_no_target_makes_the_host_wait_for_the_device(name):
    target, output = TARGETS_AND_OUTPUTS[name]
    # Reading a value of a tensor on the meta device raises.
    without_data = (
        [{key: value.to("meta") for key, value in PREDICTION.items()}] if name == "detection" else output.to("meta")
    )
    assert target(without_data).device.type == "meta"


@pytest.mark.parametrize("name", TARGETS_AND_OUTPUTS)
def test_every_target_can_be_traced(name):
    target, output = TARGETS_AND_OUTPUTS[name]
    assert torch.equal(make_fx(target)(output)(output), target(output))


@pytest.mark.parametrize("name", [name for name in TARGETS_AND_OUTPUTS if name != "detection"])
def test_scores_of_half_precision_are_computed_in_single(name):
    target, output = TARGETS_AND_OUTPUTS[name]
    score = target(output.bfloat16())
    assert score.dtype == torch.float32 and torch.equal(score, target(output.bfloat16().float()))
