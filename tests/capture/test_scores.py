"""Which score is explained: the highest logit, chosen classes, several per image, a callable's, or the only output.

Knows nothing of the capture; each target is compared with a naive Grad-CAM of that very score.
"""

import numpy
import pytest
import torch
from support.naive import full_graph, gradcam, heatmaps, highest, of_class
from support.networks import ConvNet, LogitsAndFeatures, Shaped, Unbatchable, Wrapped
from support.tolerances import SAME_INPUTS

import gradcam_fast

SCALED = SAME_INPUTS[torch.float32]
LAYER = "features.3"


def assert_maps(found, expected):
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=SCALED)


def expected_for(model, images, classes):
    """Naive maps of image b for classes[b]: (B,H,W), or (B,K,H,W) for rows of classes."""
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
    found = gradcam_fast.explain(model, images, layer=LAYER)
    assert torch.equal(found.target, found.logits.argmax(1)) and found.target.dtype == torch.int64
    assert torch.equal(found.score, found.logits.max(1).values)
    assert_maps(found.heatmap, heatmaps(model, LAYER, images, highest))


def test_an_integer_is_the_class_of_every_image(images):
    model = ConvNet()
    found = gradcam_fast.explain(model, images, target=3, layer=LAYER)
    assert found.target.tolist() == [3, 3, 3] and torch.equal(found.score, found.logits[:, 3])
    assert_maps(found.heatmap, heatmaps(model, LAYER, images, of_class(3)))


@pytest.mark.parametrize("form", [list, tuple, torch.tensor, lambda x: torch.tensor(x, dtype=torch.int32)])
def test_a_class_per_image(form, images):
    model, classes = ConvNet(), [4, 0, 2]
    found = gradcam_fast.explain(model, images, target=form(classes), layer=LAYER)
    assert found.target.tolist() == classes and found.target.dtype == torch.int64
    assert torch.equal(found.score, found.logits[range(3), classes])
    assert_maps(found.heatmap, expected_for(model, images, classes))


@pytest.mark.parametrize("form", [list, torch.tensor])
@pytest.mark.parametrize("classes", [[[1, 0], [2, 2], [4, 3]], [[1], [2], [0]], [[0, 1, 2, 3, 4]] * 3])
def test_several_classes_per_image(classes, form, images):
    model = ConvNet()
    found = gradcam_fast.explain(model, images, target=form(classes), layer=LAYER)
    assert found.target.tolist() == classes
    assert torch.equal(found.score, found.logits.gather(1, found.target))
    assert_maps(found.heatmap, expected_for(model, images, classes))
    assert found.raw_max.shape == found.raw_min.shape == found.valid.shape == found.target.shape


@pytest.mark.parametrize("k", [1, 2, 5])
def test_topk_explains_the_highest_logits_in_their_order(k, images):
    model = ConvNet()
    found = gradcam_fast.explain(model, images, topk=k, layer=LAYER)
    assert torch.equal(found.target, found.logits.topk(k).indices)
    assert torch.equal(found.score, found.logits.topk(k).values)
    assert_maps(found.heatmap, expected_for(model, images, found.target.tolist()))


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "hirescam", "layercam"])
def test_many_targets_at_once_equal_one_at_a_time(method, images):
    model, choices = ConvNet(), {"layer": LAYER, "method": method, "normalize": "none"}
    together = gradcam_fast.explain(model, images, target=[[0, 1, 2, 3, 4]] * 3, **choices)
    for index in range(5):
        alone = gradcam_fast.explain(model, images, target=index, **choices)
        atol = SCALED * alone.heatmap.abs().max().item()
        torch.testing.assert_close(together.heatmap[:, index], alone.heatmap, rtol=0, atol=atol)
        torch.testing.assert_close(together.raw_max[:, index], alone.raw_max, rtol=SCALED, atol=0)


def test_many_targets_behind_an_operation_that_takes_one_at_a_time(images):
    model = Unbatchable()
    found = gradcam_fast.explain(model, images, target=[[0, 1], [2, 3], [4, 0]], layer=LAYER)
    assert_maps(found.heatmap, expected_for(model, images, [[0, 1], [2, 3], [4, 0]]))


def test_many_targets_in_train_mode_share_one_dropout_mask(images):
    model = ConvNet(dropout=0.5).train()
    torch.manual_seed(5)
    together = gradcam_fast.explain(model, images, target=[[0, 1]] * 3, layer=LAYER)
    torch.manual_seed(5)
    alone = gradcam_fast.explain(model, images, target=1, layer=LAYER)
    torch.testing.assert_close(together.heatmap[:, 1], alone.heatmap, rtol=0, atol=SCALED)


def test_a_callable_gives_one_score_per_image(images):
    model = ConvNet()

    def difference(output):
        return output[:, 1] - 2 * output[:, 0]

    found = gradcam_fast.explain(model, images, target=difference, layer=LAYER)
    assert found.target is None
    assert torch.equal(found.score, difference(found.logits))
    assert_maps(found.heatmap, heatmaps(model, LAYER, images, difference))


def test_a_list_of_callables_has_one_for_each_image(images):
    model = ConvNet()
    each = [lambda logits: logits[3], lambda logits: logits[1] - logits[0], lambda logits: logits[2:3]]

    def together(output):
        return torch.stack([output[0, 3], output[1, 1] - output[1, 0], output[2, 2]])

    found = gradcam_fast.explain(model, images, target=each, layer=LAYER)
    expected = gradcam_fast.explain(model, images, target=together, layer=LAYER)
    assert torch.equal(found.score, expected.score) and torch.equal(found.heatmap, expected.heatmap)


@pytest.mark.parametrize(
    ("wrap", "of_one"),
    [
        (lambda logits: {"logits": logits, "features": logits}, lambda logits: logits[1]),
        (lambda logits: [{"scores": each} for each in logits], lambda found: found["scores"][1]),
    ],
)
def test_of_a_dict_its_logits_and_of_a_list_its_members_are_the_images(wrap, of_one, images):
    model = Wrapped(wrap)
    found = gradcam_fast.explain(model, images, target=[of_one] * 3, layer=LAYER)
    model.wrap = lambda logits: logits
    assert torch.equal(found.heatmap, gradcam_fast.explain(model, images, target=1, layer=LAYER).heatmap)


def test_a_callable_gives_several_scores_per_image(images):
    model = ConvNet()
    found = gradcam_fast.explain(model, images, target=lambda output: output[:, 1:4].exp(), layer=LAYER)
    assert found.target is None and torch.equal(found.score, found.logits[:, 1:4].exp())
    for column in range(3):
        expected = heatmaps(model, LAYER, images, lambda output, c=column + 1: output[:, c].exp())
        assert_maps(found.heatmap[:, column], expected)


def test_a_callable_sees_logits_with_a_graph_and_the_caller_sees_them_without(images):
    seen = []

    def first(output):
        seen.append(output)
        return output[:, 0]

    found = gradcam_fast.explain(ConvNet(), images, target=first, layer=LAYER)
    assert seen[0].requires_grad and not found.logits.requires_grad and not found.score.requires_grad


@pytest.mark.parametrize("trailing", [(), (1,), (1, 1, 1)])
@pytest.mark.parametrize("target", [None, 0])
def test_a_model_of_one_output_has_that_output_explained(target, trailing, images):
    model = Shaped(*trailing)
    found = gradcam_fast.explain(model, images, target=target, layer=LAYER)
    with torch.no_grad():
        assert torch.equal(found.logits, model(images))
    assert torch.equal(found.score, found.logits.reshape(3))
    assert found.target.tolist() == [0, 0, 0]
    assert_maps(found.heatmap, heatmaps(model, LAYER, images, lambda output: output.reshape(3)))


@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        (lambda logits: {"logits": logits, "loss": logits.sum()}, None),
        (lambda logits: LogitsAndFeatures(logits, logits.exp()), None),
        (lambda logits: (logits,), None),
        (lambda logits: {"a": [logits], "b": logits.exp()}, lambda returned: returned["a"][0]),
    ],
)
def test_the_logits_are_found_in_what_the_model_returns(wrap, output, images):
    model = Wrapped(wrap)
    plain = ConvNet()
    plain.load_state_dict(model.state_dict())
    found = gradcam_fast.explain(model, images, layer=LAYER, output=output)
    expected = gradcam_fast.explain(plain, images, layer=LAYER)
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.heatmap, expected.heatmap)


def test_an_image_without_a_batch_is_a_batch_of_one(images):
    model = ConvNet()
    found = gradcam_fast.explain(model, images[1], layer=LAYER)
    expected = gradcam_fast.explain(model, images[1:2], layer=LAYER)
    assert torch.equal(found.heatmap, expected.heatmap) and torch.equal(found.logits, expected.logits)
    assert found.heatmap.shape == (1, 16, 16)


def test_a_batch_without_images_gives_no_maps(images):
    found = gradcam_fast.explain(ConvNet(), images[:0], topk=2, layer=LAYER)
    assert found.heatmap.shape == (0, 2, 16, 16) and found.logits.shape == (0, 5)


@pytest.mark.parametrize("size", [(4, 4), (9, 31), 7])
def test_the_map_comes_in_the_size_asked_for(size, images):
    model = ConvNet()
    activations, gradients, _ = full_graph(model, LAYER, images, highest)
    expected = gradcam(activations, gradients, (size, size) if isinstance(size, int) else size)
    assert_maps(gradcam_fast.explain(model, images, layer=LAYER, size=size).heatmap, expected)


def test_raw_extremes_undo_the_normalisation(images):
    model = ConvNet()
    scaled = gradcam_fast.explain(model, images, layer=LAYER)
    raw = gradcam_fast.explain(model, images, layer=LAYER, normalize="none")
    low, high = scaled.raw_min[:, None, None], scaled.raw_max[:, None, None]
    torch.testing.assert_close(
        scaled.heatmap * (high - low) + low, raw.heatmap, rtol=SCALED, atol=SCALED * high.max().item()
    )
    by_maximum = gradcam_fast.explain(model, images, layer=LAYER, normalize="max")
    torch.testing.assert_close(by_maximum.heatmap * high, raw.heatmap, rtol=SCALED, atol=0)


def test_integers_of_numpy_are_integers(images):
    model = ConvNet()
    expected = gradcam_fast.explain(model, images, topk=2, size=9)
    found = gradcam_fast.explain(model, images, topk=numpy.int64(2), size=numpy.int32(9))
    assert torch.equal(found.heatmap, expected.heatmap)


def test_an_explanation_prints_shapes_and_not_numbers(images):
    found = gradcam_fast.explain(ConvNet(), images, topk=2, layer=LAYER)
    assert repr(found) == ("Explanation(heatmap (3, 2, 16, 16) at features.3, target (3, 2) int64, valid (3, 2) bool)")
