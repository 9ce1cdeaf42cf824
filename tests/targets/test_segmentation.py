"""`targets.segmentation` on real networks with random weights, against means over masks computed by hand."""

from types import SimpleNamespace

import numpy
import pytest
import torch
from support.tolerances import SAME_INPUTS

import gradcam_fast
from gradcam_fast import targets

models = pytest.importorskip("torchvision.models")
TOLERANCE = SAME_INPUTS[torch.float32]


def assert_close(actual, expected, scale=1.0):
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE * scale)


def blobs(*shape):
    """Random masks, different for every image and class."""
    return torch.rand(shape) > 0.7


@pytest.fixture(scope="module")
def small_segmenter():
    torch.manual_seed(0)
    return models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5).eval()


@pytest.fixture
def photos():
    return torch.rand(2, 3, 64, 64)


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "fcn_resnet50"])
def test_the_score_of_a_class_is_the_mean_of_its_logits_over_the_mask(name, photos):
    model = getattr(models.segmentation, name)(weights=None, weights_backbone=None, num_classes=5).eval()
    mask = blobs(2, 64, 64)
    explanation = gradcam_fast.explain(model, photos, target=targets.segmentation(2, mask), layer="backbone")
    by_hand = torch.stack([explanation.logits["out"][b, 2][mask[b]].mean() for b in range(2)])
    assert_close(explanation.score, by_hand, by_hand.abs().max().item())
    # Seg-Grad-CAM as published sums; the heatmap is the same.
    published = gradcam_fast.explain(
        model, photos, target=lambda output: (output["out"][:, 2] * mask).sum((1, 2)), layer="backbone"
    )
    assert explanation.valid.all()
    assert_close(explanation.heatmap, published.heatmap)


def test_another_mask_gives_another_map_except_at_the_logits_themselves(small_segmenter, photos):
    left = torch.zeros(64, 64, dtype=torch.bool)
    left[:, :20] = True

    def difference(layer):
        one, other = (
            gradcam_fast.explain(small_segmenter, photos, target=targets.segmentation(2, mask), layer=layer).heatmap
            for mask in (left, left.flip(1))
        )
        return (one - other).abs().amax((1, 2)).min()

    assert difference("backbone.12") > 0.1
    assert difference("classifier") < TOLERANCE


def test_several_classes_each_over_its_own_mask(small_segmenter, photos):
    masks = blobs(2, 3, 64, 64)
    together = gradcam_fast.explain(
        small_segmenter, photos, target=targets.segmentation([4, 0, 1], masks), layer="backbone"
    )
    for k, category in enumerate([4, 0, 1]):
        target = targets.segmentation(category, masks[:, k])
        alone = gradcam_fast.explain(small_segmenter, photos, target=target, layer="backbone")
        assert torch.equal(together.score[:, k], alone.score)
        assert_close(together.heatmap[:, k], alone.heatmap)


def test_without_a_mask_the_whole_image_counts(small_segmenter, photos):
    explanation = gradcam_fast.explain(small_segmenter, photos, target=targets.segmentation([1, 3]), layer="backbone")
    assert_close(explanation.score, explanation.logits["out"][:, [1, 3]].mean((2, 3)))


def test_an_empty_mask_gives_no_map_and_does_not_change_its_neighbour(small_segmenter, photos):
    mask = blobs(2, 64, 64)
    whole = gradcam_fast.explain(small_segmenter, photos, target=targets.segmentation(2, mask), layer="backbone")
    mask[0] = False
    explanation = gradcam_fast.explain(small_segmenter, photos, target=targets.segmentation(2, mask), layer="backbone")
    assert (
        explanation.valid.tolist() == [False, True] and explanation.score[0] == 0 and not explanation.heatmap[0].any()
    )
    assert torch.equal(explanation.heatmap[1], whole.heatmap[1]) and torch.equal(explanation.score[1], whole.score[1])


def test_a_thin_object_counts_in_coarse_logits():
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        num_labels=4, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
    )  # fmt: skip
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    mask = numpy.zeros((64, 64), dtype=bool)
    mask[:, 21] = True  # one pixel wide, where four make one position
    photos = torch.rand(2, 3, 64, 64)
    layer = "decode_head.linear_fuse"
    explanation = gradcam_fast.explain(model, photos, target=targets.segmentation(3, mask), layer=layer)
    assert explanation.logits.logits.shape == (2, 4, 16, 16)
    assert_close(explanation.score, explanation.logits.logits[:, 3, :, 5].mean(1))
    expected = gradcam_fast.explain(model, photos, target=lambda out: out.logits[:, 3, :, 5].sum(1), layer=layer)
    assert explanation.valid.all()
    assert_close(explanation.heatmap, expected.heatmap)


@pytest.mark.parametrize("size", [(6, 10), (3, 5), (12, 20)])
def test_a_mask_of_any_resolution_weighs_by_the_pixels_covered(size):
    logits, mask = torch.randn(2, 4, *size), blobs(6, 10)
    cells = mask.repeat_interleave(2, 0).repeat_interleave(2, 1).float()  # a grid that every size divides
    share = cells.reshape(size[0], 12 // size[0], size[1], 20 // size[1]).mean((1, 3))
    score = targets.segmentation(1, mask)(SimpleNamespace(logits=logits))
    assert_close(score, (logits[:, 1] * share).sum((1, 2)) / share.sum())


def test_volumes_have_three_sides():
    logits, mask = torch.randn(2, 3, 4, 5, 6), blobs(4, 5, 6)
    assert_close(targets.segmentation(2, mask)(logits), torch.stack([image[2][mask].mean() for image in logits]))
