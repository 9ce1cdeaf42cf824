"""smooth="augment": the mean over six copies, of which the image itself is one; and pytorch-grad-cam's aug_smooth."""

import pytest
import torch
from support.networks import ConvNet, TwoInputs, conv_relu, pooled_head
from support.tolerances import PEER, SAME_INPUTS
from support.unchanged import unchanged
from torch import nn

import gradcam_fast
from gradcam_fast.methods import METHODS

EXACT = SAME_INPUTS[torch.float32]


def explain(model, images, **choices):
    return gradcam_fast.explain(model, images, **{"layer": "features.4"} | choices)


def mean_of_copies(model, images, target, **choices):
    """The mean of the heatmaps of six copies, one by one, before it is normalised again."""
    maps = []
    for mirrored in (False, True):
        for factor in (0.9, 1.0, 1.1):
            copies = (images.flip(-1) if mirrored else images) * factor
            heatmap = explain(model, copies, target=target, **choices).heatmap
            maps.append(heatmap.flip(-1) if mirrored else heatmap)
    return torch.stack(maps).mean(0)


def scaled(mean):
    low, high = mean.amin((-2, -1), keepdim=True), mean.amax((-2, -1), keepdim=True)
    return torch.where(high > low, (mean - low) / (high - low), 0)


@pytest.mark.parametrize("method", METHODS)
def test_the_map_is_the_mean_over_six_copies(method, images):
    model = ConvNet()
    explanation = explain(model, images, method=method, smooth="augment", target=2)
    mean = mean_of_copies(model, images, 2, method=method)
    assert (explanation.heatmap - scaled(mean)).abs().max() <= 1e-4
    assert (explanation.raw_max - mean.amax((1, 2))).abs().max() <= 1e-4
    assert (explanation.raw_min - mean.amin((1, 2))).abs().max() <= 1e-4


def test_prediction_score_and_classes_are_those_of_the_images_themselves(images):
    model = ConvNet()
    for choices in ({}, {"topk": 3}, {"target": [[0, 1]]}):
        plain, smooth = explain(model, images, **choices), explain(model, images, **choices, smooth="augment")
        assert torch.allclose(smooth.logits, plain.logits, atol=1e-6)
        assert torch.equal(smooth.target, plain.target)
        assert torch.allclose(smooth.score, plain.score, atol=1e-6)
        assert smooth.layer == plain.layer and smooth.heatmap.shape == plain.heatmap.shape
        mean = mean_of_copies(model, images, plain.target)
        assert (smooth.heatmap - scaled(mean)).abs().max() <= EXACT


@pytest.mark.parametrize(("chunk", "runs"), [(None, [15, 3]), (18, [18]), (6, [6, 6, 6]), (1, [3] * 6), (12, [12, 6])])
def test_as_many_copies_run_at_once_as_the_chunk_has_room_for(chunk, runs, images):
    model = ConvNet()
    expected = explain(model, images, smooth="augment").heatmap
    model.runs.clear()
    explanation = explain(model, images, smooth="augment", chunk=chunk)
    assert model.runs == runs and (explanation.heatmap - expected).abs().max() <= EXACT


def test_a_callable_target_sees_one_batch_at_a_time(images):
    model, offsets, seen = ConvNet(), torch.tensor([1.0, 2.0, 3.0]), []

    def score(logits):
        seen.append(len(logits))
        return (logits[:, 2] * offsets).tanh()

    explanation = explain(model, images, target=score, smooth="augment")
    assert set(seen) == {3} and explanation.valid.all()
    assert (explanation.heatmap - scaled(mean_of_copies(model, images, score))).abs().max() <= EXACT
    assert explanation.target is None and explanation.logits.shape == (3, 5)


def test_the_layer_found_is_that_of_the_images(images):
    model = ConvNet()
    found = gradcam_fast.explain(model, images, smooth="augment")
    assert found.layer == gradcam_fast.explain(model, images).layer
    named = gradcam_fast.explain(model, images, layer=found.layer, smooth="augment")
    assert torch.equal(found.heatmap, named.heatmap)


def test_other_inputs_are_those_of_each_image(images):
    model, shift = TwoInputs(), torch.tensor([1.0, -1.0, 2.0])
    explanation = explain(model, (images, shift), target=2, smooth="augment")
    for place in range(3):
        one = explain(model, (images[place : place + 1], shift[place : place + 1]), target=2, smooth="augment")
        assert (explanation.heatmap[place] - one.heatmap[0]).abs().max() <= EXACT


def test_an_image_that_is_not_finite_leaves_the_others_as_they_are(images):
    model = ConvNet()
    expected = explain(model, images, target=2, smooth="augment")
    images[1, 0, 0, 0] = torch.nan
    explanation = explain(model, images, target=2, smooth="augment")
    assert explanation.reason == ["", "not finite", ""] and explanation.valid.tolist() == [True, False, True]
    assert torch.equal(explanation.heatmap[::2], expected.heatmap[::2]) and not explanation.heatmap[1].any()


@pytest.mark.parametrize("chunk", [None, 18, 1])
@pytest.mark.parametrize("target", [2, [[2, 0]]])
def test_when_sees_the_logits_of_the_images_alone(target, chunk, images):
    model, seen = ConvNet(), []

    def when(logits):
        seen.append(logits.shape)
        return torch.tensor([True, False, True])

    explanation = gradcam_fast.Explainer(model, layer="features.4", smooth="augment", when=when, chunk=chunk)(
        images, target
    )
    expected = explain(model, images, target=target, smooth="augment", chunk=chunk)
    assert seen == [torch.Size([3, 5])]
    assert explanation.reason[1] == ("not chosen" if target == 2 else ["not chosen"] * 2)
    assert torch.equal(explanation.heatmap[::2], expected.heatmap[::2]) and not explanation.heatmap[1].any()


def test_the_model_stays_as_it_is(images):
    model = ConvNet(dropout=0.5).train()
    with unchanged(model):
        explain(model, images, smooth="augment")


def test_a_detectors_list_of_dicts(images):
    class Detector(ConvNet):
        def forward(self, images):
            return [{"scores": row.sigmoid()} for row in super().forward(images)]

    model = Detector()
    explanation = explain(
        model, images, target=lambda found: torch.stack([one["scores"][1] for one in found]), smooth="augment"
    )
    plain = ConvNet()
    plain.load_state_dict(model.state_dict())
    expected = explain(plain, images, target=lambda logits: logits[:, 1].sigmoid(), smooth="augment")
    assert (explanation.heatmap - expected.heatmap).abs().max() <= EXACT and len(explanation.logits) == 3


@pytest.mark.parametrize("method", ["gradcam", "hirescam", "layercam"])
def test_pytorch_grad_cam_has_the_same_mean_before_it_is_normalised_again(method, images):
    peer = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    model = ConvNet()
    kind = {"gradcam": peer.GradCAM, "hirescam": peer.HiResCAM, "layercam": peer.LayerCAM}[method]
    theirs = kind(model, [model.features[4]])(
        images, [targets.ClassifierOutputTarget(k) for k in (0, 1, 2)], aug_smooth=True
    )
    ours = explain(model, images, method=method, target=[0, 1, 2], smooth="augment")
    low, high = ours.raw_min[:, None, None], ours.raw_max[:, None, None]
    assert (ours.heatmap * (high - low) + low - torch.from_numpy(theirs)).abs().max() <= PEER


def test_both_smoothings_of_pytorch_grad_cam_together(images):
    model = ConvNet()
    both = explain(model, images, target=2, smooth=("augment", "eigen")).heatmap
    assert (both - scaled(mean_of_copies(model, images, 2, smooth="eigen"))).abs().max() <= EXACT


def test_series_are_refused():
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 5))
    with pytest.raises(ValueError, match=r"smooth='augment' mirrors images.*\(2, 3, 20\).*smooth='noise'"):
        gradcam_fast.explain(model, torch.randn(2, 3, 20), layer="1", smooth="augment")
    with pytest.raises(ValueError, match="both smooth='augment' and cuda_graph=True"):
        gradcam_fast.Explainer(nn.Sequential(conv_relu(), pooled_head(8)), smooth="augment", cuda_graph=True)
