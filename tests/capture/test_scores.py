"""The score that is explained: the highest logit, given classes, several per image, a callable's, or the only output.

Each target is compared with a naive Grad-CAM of the same score.
"""

import pytest
import torch
from support.naive import heatmaps, highest, of_class
from support.networks import ConvNet, LogitsAndFeatures, Shaped, Unbatchable, Wrapped
from support.tolerances import SAME_INPUTS

import gradcam_fast

TOLERANCE = SAME_INPUTS[torch.float32]
LAYER = "features.3"


def assert_maps(actual, expected):
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=TOLERANCE)


def expected_for(model, images, classes):
    """Naive heatmaps of image b for classes[b]: (B,H,W), or (B,K,H,W) where classes[b] is a list."""
    rows = [row if isinstance(row, list) else [row] for row in classes]
    maps = torch.stack(
        [
            torch.cat([heatmaps(model, LAYER, images[b : b + 1], of_class(index)) for index in row])
            for b, row in enumerate(rows)
        ]
    )
    return maps if isinstance(classes[0], list) else maps[:, 0]


def test_without_a_target_the_highest_logit_is_explained(images):
    model = ConvNet()
    explanation = gradcam_fast.explain(model, images, layer=LAYER)
    assert torch.equal(explanation.target, explanation.logits.argmax(1)) and explanation.target.dtype == torch.int64
    assert torch.equal(explanation.score, explanation.logits.max(1).values)
    assert_maps(explanation.heatmap, heatmaps(model, LAYER, images, highest))


def test_an_integer_target_is_the_class_of_every_image(images):
    model = ConvNet()
    explanation = gradcam_fast.explain(model, images, target=3, layer=LAYER)
    assert explanation.target.tolist() == [3, 3, 3] and torch.equal(explanation.score, explanation.logits[:, 3])
    assert_maps(explanation.heatmap, heatmaps(model, LAYER, images, of_class(3)))


@pytest.mark.parametrize("form", [list, tuple, torch.tensor, lambda x: torch.tensor(x, dtype=torch.int32)])
def test_a_list_of_targets_has_a_class_per_image(form, images):
    model, classes = ConvNet(), [4, 0, 2]
    explanation = gradcam_fast.explain(model, images, target=form(classes), layer=LAYER)
    assert explanation.target.tolist() == classes and explanation.target.dtype == torch.int64
    assert torch.equal(explanation.score, explanation.logits[range(3), classes])
    assert_maps(explanation.heatmap, expected_for(model, images, classes))


@pytest.mark.parametrize("form", [list, torch.tensor])
@pytest.mark.parametrize("classes", [[[1, 0], [2, 2], [4, 3]], [[1], [2], [0]], [[0, 1, 2, 3, 4]] * 3])
def test_rows_of_targets_are_several_classes_per_image(classes, form, images):
    model = ConvNet()
    explanation = gradcam_fast.explain(model, images, target=form(classes), layer=LAYER)
    assert explanation.target.tolist() == classes
    assert torch.equal(explanation.score, explanation.logits.gather(1, explanation.target))
    assert_maps(explanation.heatmap, expected_for(model, images, classes))
    assert explanation.raw_max.shape == explanation.raw_min.shape == explanation.valid.shape == explanation.target.shape


@pytest.mark.parametrize("form", [list, torch.tensor])
@pytest.mark.parametrize("row", [[1, 2], [3]])
def test_one_row_of_targets_is_for_every_image(row, form, images):
    model = ConvNet()
    explanation = gradcam_fast.explain(model, images, target=form([row]), layer=LAYER)
    expected = gradcam_fast.explain(model, images, target=[row] * 3, layer=LAYER)
    assert explanation.target.tolist() == [row] * 3 and torch.equal(explanation.heatmap, expected.heatmap)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_topk_explains_the_highest_logits_in_their_order(k, images):
    model = ConvNet()
    explanation = gradcam_fast.explain(model, images, topk=k, layer=LAYER)
    assert torch.equal(explanation.target, explanation.logits.topk(k).indices)
    assert torch.equal(explanation.score, explanation.logits.topk(k).values)
    assert_maps(explanation.heatmap, expected_for(model, images, explanation.target.tolist()))


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "hirescam", "layercam"])
def test_several_targets_equal_single_targets(method, images):
    model, choices = ConvNet(), {"layer": LAYER, "method": method, "normalize": "none"}
    together = gradcam_fast.explain(model, images, target=[[0, 1, 2, 3, 4]] * 3, **choices)
    for index in range(5):
        alone = gradcam_fast.explain(model, images, target=index, **choices)
        atol = TOLERANCE * alone.heatmap.abs().max().item()
        torch.testing.assert_close(together.heatmap[:, index], alone.heatmap, rtol=0, atol=atol)
        torch.testing.assert_close(together.raw_max[:, index], alone.raw_max, rtol=TOLERANCE, atol=0)


def test_several_targets_are_explained_where_the_backward_cannot_be_batched(images):
    model = Unbatchable()
    explanation = gradcam_fast.explain(model, images, target=[[0, 1], [2, 3], [4, 0]], layer=LAYER)
    assert_maps(explanation.heatmap, expected_for(model, images, [[0, 1], [2, 3], [4, 0]]))


def test_several_targets_in_train_mode_share_one_dropout_mask(images):
    model = ConvNet(dropout=0.5).train()
    torch.manual_seed(5)
    together = gradcam_fast.explain(model, images, target=[[0, 1]] * 3, layer=LAYER)
    torch.manual_seed(5)
    alone = gradcam_fast.explain(model, images, target=1, layer=LAYER)
    torch.testing.assert_close(together.heatmap[:, 1], alone.heatmap, rtol=0, atol=TOLERANCE)


def test_a_callable_gives_one_score_per_image(images):
    model = ConvNet()

    def difference(output):
        return output[:, 1] - 2 * output[:, 0]

    explanation = gradcam_fast.explain(model, images, target=difference, layer=LAYER)
    assert explanation.target is None
    assert torch.equal(explanation.score, difference(explanation.logits))
    assert_maps(explanation.heatmap, heatmaps(model, LAYER, images, difference))


def test_a_list_of_callables_has_one_per_image(images):
    model = ConvNet()
    callables = [lambda logits: logits[3], lambda logits: logits[1] - logits[0], lambda logits: logits[2:3]]

    def together(output):
        return torch.stack([output[0, 3], output[1, 1] - output[1, 0], output[2, 2]])

    explanation = gradcam_fast.explain(model, images, target=callables, layer=LAYER)
    expected = gradcam_fast.explain(model, images, target=together, layer=LAYER)
    assert torch.equal(explanation.score, expected.score) and torch.equal(explanation.heatmap, expected.heatmap)


@pytest.mark.parametrize(
    ("wrap", "of_one"),
    [
        (lambda logits: {"logits": logits, "features": logits}, lambda logits: logits[1]),
        (lambda logits: [{"scores": scores} for scores in logits], lambda member: member["scores"][1]),
    ],
)
def test_callables_per_image_receive_the_logits_of_a_dict_or_the_members_of_a_list(wrap, of_one, images):
    model = Wrapped(wrap)
    explanation = gradcam_fast.explain(model, images, target=[of_one] * 3, layer=LAYER)
    model.wrap = lambda logits: logits
    assert torch.equal(explanation.heatmap, gradcam_fast.explain(model, images, target=1, layer=LAYER).heatmap)


def test_a_callable_gives_several_scores_per_image(images):
    model = ConvNet()
    explanation = gradcam_fast.explain(model, images, target=lambda output: output[:, 1:4].exp(), layer=LAYER)
    assert explanation.target is None and torch.equal(explanation.score, explanation.logits[:, 1:4].exp())
    for column in range(3):
        expected = heatmaps(model, LAYER, images, lambda output, c=column + 1: output[:, c].exp())
        assert_maps(explanation.heatmap[:, column], expected)


def test_a_callable_receives_logits_with_a_graph_and_the_caller_without(images):
    received = []

    def first(output):
        received.append(output)
        return output[:, 0]

    explanation = gradcam_fast.explain(ConvNet(), images, target=first, layer=LAYER)
    assert received[0].requires_grad and not explanation.logits.requires_grad and not explanation.score.requires_grad


@pytest.mark.parametrize("trailing", [(), (1,), (1, 1, 1)])
@pytest.mark.parametrize("target", [None, 0])
def test_the_only_output_of_a_model_is_explained(target, trailing, images):
    model = Shaped(*trailing)
    explanation = gradcam_fast.explain(model, images, target=target, layer=LAYER)
    with torch.no_grad():
        assert torch.equal(explanation.logits, model(images))
    assert torch.equal(explanation.score, explanation.logits.reshape(3))
    assert explanation.target.tolist() == [0, 0, 0]
    assert_maps(explanation.heatmap, heatmaps(model, LAYER, images, lambda output: output.reshape(3)))


@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        (lambda logits: {"logits": logits, "loss": logits.sum()}, None),
        (lambda logits: LogitsAndFeatures(logits, logits.exp()), None),
        (lambda logits: (logits,), None),
        (lambda logits: {"a": [logits], "b": logits.exp()}, lambda returned: returned["a"][0]),
    ],
)
def test_the_logits_are_picked_from_the_models_output(wrap, output, images):
    model = Wrapped(wrap)
    plain = ConvNet()
    plain.load_state_dict(model.state_dict())
    explanation = gradcam_fast.explain(model, images, layer=LAYER, output=output)
    expected = gradcam_fast.explain(plain, images, layer=LAYER)
    assert torch.equal(explanation.logits, expected.logits) and torch.equal(explanation.heatmap, expected.heatmap)
