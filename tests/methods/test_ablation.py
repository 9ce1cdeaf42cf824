"""Ablation-CAM: by hand, against one channel at a time, and against pytorch-grad-cam where it is right."""

import pytest
import torch
from support import naive, naive_methods
from support.networks import ConvNet, PatchNet, Repeating, Wrapped, conv_relu, pooled_head
from support.tolerances import SAME_INPUTS
from torch import nn

import gradcam_fast

EXACT = SAME_INPUTS[torch.float32]


class Mlp(nn.Module):
    """A head that is not affine: pooling, and two linear layers with a ReLU between them."""

    def __init__(self):
        super().__init__()
        self.trunk = conv_relu()
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(inplace=True), nn.Linear(16, 5)
        )
        self.eval()

    def forward(self, images):
        return self.head(self.trunk(images))


def signed():
    """A layer with values of both signs, in front of a head that is not affine."""
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.SiLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), pooled_head(6)).eval()


def test_a_map_computed_by_hand():
    # Two channels, [1, 3] and [4, 0]; the score is 2 mean(first) - 1 mean(second) + 6 = 8. Without the first it is 4,
    # without the second 10: the weights are (8 - 4) / 8 and (8 - 10) / 8, and the map .5 [1, 3] - .25 [4, 0].
    model = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2)[..., None, None])
        model[3].weight.copy_(torch.tensor([[2.0, -1.0]]))
        model[3].bias.fill_(6)
    image = torch.tensor([[[[1.0, 3.0]], [[4.0, 0.0]]]])
    choices = {"layer": "0", "method": "ablation", "normalize": "none", "relu": False}
    explanation = gradcam_fast.explain(model, image, **choices)
    assert torch.allclose(explanation.heatmap, torch.tensor([[[-0.5, 1.5]]])) and explanation.score.item() == 8


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (ConvNet, "features.4"),  # affine behind it
        (ConvNet, "features.1"),
        (ConvNet, "features.3"),  # an in-place ReLU behind it
        (Mlp, "trunk"),
        (signed, "0"),
        (signed, "1"),
        (lambda: Repeating(2), "relu"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_channel_weighs_as_much_as_the_score_falls_without_it(make, layer, dtype, images):
    model, images = make().to(dtype), images.to(dtype)
    explanation = gradcam_fast.explain(model, images, layer=layer, method="ablation", target=1, chunk=5)
    expected = naive_methods.ablation(model.double(), layer, images.double(), naive.of_class(1))
    assert (explanation.heatmap - naive_methods.scaled(expected, (16, 16))).abs().max() <= EXACT
    choices = {"layer": layer, "method": "ablation", "target": 1, "normalize": "none", "relu": False}
    raw = gradcam_fast.explain(model.to(dtype), images, size=tuple(expected.shape[1:]), **choices).heatmap
    assert (raw - expected).abs().max() <= EXACT * expected.abs().max().clamp(min=1)


def test_a_negative_score_does_not_turn_the_map_around(images):
    model = ConvNet()
    with torch.no_grad():
        model.head[4].bias -= 10
    lowered = gradcam_fast.explain(model, images, layer="features.4", method="ablation", target=1)
    with torch.no_grad():
        model.head[4].bias += 20
    raised = gradcam_fast.explain(model, images, layer="features.4", method="ablation", target=1)
    assert (lowered.score < 0).all() and (raised.score > 0).all()
    assert (lowered.heatmap - raised.heatmap).abs().max() <= EXACT


def test_behind_an_affine_head_one_forward_is_enough(images):
    model = ConvNet()
    gradcam_fast.explain(model, images, layer="features.4", method="ablation", topk=2)
    assert model.runs == [3]


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunks_bound_the_rows_of_a_run_and_change_nothing(chunk, images):
    model = Mlp()
    expected = gradcam_fast.explain(model, images, layer="trunk", method="ablation").heatmap
    rows = []
    model.head.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    explanation = gradcam_fast.explain(model, images, layer="trunk", method="ablation", chunk=chunk)
    assert max(rows) <= max(chunk, 3) and (explanation.heatmap - expected).abs().max() <= EXACT


def test_channels_of_zeros_are_not_run(images):
    model = Mlp()
    with torch.no_grad():
        model.trunk[0].weight[2:].zero_()
        model.trunk[0].bias[2:] = -1
    rows = []
    model.head.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    gradcam_fast.explain(model, images[:1], layer="trunk", method="ablation")
    assert rows == [1, 1, 2, 3]  # the prediction, the recording with its check, and two channels beside the image


def test_several_targets_share_their_runs(images):
    model = Mlp()
    both = gradcam_fast.explain(model, images, layer="trunk", method="ablation", target=[[0, 3]])
    for place, category in enumerate([0, 3]):
        one = gradcam_fast.explain(model, images, layer="trunk", method="ablation", target=category)
        assert (both.heatmap[:, place] - one.heatmap).abs().max() <= EXACT
        assert torch.allclose(both.score[:, place], one.score)


def test_the_class_explained_stays_that_of_the_image(images):
    model = Mlp()
    named = gradcam_fast.explain(model, images, layer="trunk", method="ablation", target=model(images).argmax(1))
    predicted = gradcam_fast.explain(model, images, layer="trunk", method="ablation")
    assert torch.equal(predicted.heatmap, named.heatmap)


def test_a_callable_target_sees_each_variant_in_its_images_place(images):
    model, offsets = Mlp(), torch.tensor([1.0, 2.0, 3.0])
    seen = []

    def score(logits):
        seen.append(len(logits))
        return (logits[:, 0] * offsets).tanh()

    of_batch = gradcam_fast.explain(model, images, layer="trunk", method="ablation", target=score)
    assert set(seen) == {3}
    for place, offset in enumerate(offsets):
        alone = naive_methods.ablation(
            model, "trunk", images[place : place + 1], lambda logits, offset=offset: (logits[:, 0] * offset).tanh()
        )
        assert (of_batch.heatmap[place] - naive_methods.scaled(alone, (16, 16))[0]).abs().max() <= 1e-4


def test_one_function_for_each_image(images):
    model = Mlp()
    functions = [lambda logits, k=k: logits[k].tanh() for k in range(3)]
    explanation = gradcam_fast.explain(model, images, layer="trunk", method="ablation", target=functions)
    classes = torch.arange(3)
    expected = gradcam_fast.explain(
        model, images, layer="trunk", method="ablation", target=lambda out: out[classes, classes].tanh()
    )
    assert torch.equal(explanation.heatmap, expected.heatmap)


def test_a_detectors_list_of_dicts(images):
    model = Wrapped(lambda logits: [{"scores": row.sigmoid()} for row in logits])
    explanation = gradcam_fast.explain(
        model,
        images,
        layer="features.4",
        method="ablation",
        target=lambda found: torch.stack([one["scores"][1] for one in found]),
    )
    expected = naive_methods.ablation(model, "features.4", images, lambda found: found[0]["scores"][1:2])
    assert (explanation.heatmap - naive_methods.scaled(expected, (16, 16))).abs().max() <= 1e-4


def test_tokens_are_ablated_and_the_class_token_stays(images):
    model = PatchNet(class_tokens=1)
    explanation = gradcam_fast.explain(model, images, layer="norm", method="ablation", target=2)
    maps = []
    for image in images.split(1):
        weights = naive_methods.ablation_weights(
            model, "norm", image, naive.of_class(2), select=lambda _, k: (0, slice(1, None), k), count=16
        )
        tokens = naive_methods.activations_of(model, "norm", image)[0, 1:]
        maps.append((tokens @ weights).reshape(2, 2))
    expected = naive_methods.scaled(torch.stack(maps), (16, 16))
    assert (explanation.heatmap - expected).abs().max() <= 1e-4


def test_several_layers_give_the_mean_of_their_maps(images):
    model, layers = Mlp(), ["trunk.0", "trunk.1"]
    both = gradcam_fast.explain(model, images, layer=layers, method="ablation").heatmap
    mean = sum(gradcam_fast.explain(model, images, layer=layer, method="ablation").heatmap for layer in layers) / 2
    low, high = mean.amin((1, 2), keepdim=True), mean.amax((1, 2), keepdim=True)
    assert (both - (mean - low) / (high - low)).abs().max() <= 1e-4


def test_a_model_without_gradients(images):
    class Detached(Mlp):
        @torch.no_grad()
        def forward(self, images):
            return super().forward(images).detach()

    model = Detached()
    explanation = gradcam_fast.explain(model, images, layer="trunk", method="ablation", target=1)
    expected = naive_methods.scaled(naive_methods.ablation(model, "trunk", images, naive.of_class(1)), (16, 16))
    assert (explanation.heatmap - expected).abs().max() <= EXACT


@pytest.mark.parametrize(("make", "layer"), [(ConvNet, "features.4"), (ConvNet, "features.2"), (Mlp, "trunk")])
def test_pytorch_grad_cam_agrees_where_no_value_is_negative_one_channel_at_a_time(make, layer, images):
    peer = pytest.importorskip("pytorch_grad_cam")
    model = make()
    for image in images.split(1):
        theirs = torch.from_numpy(peer.AblationCAM(model, [model.get_submodule(layer)], batch_size=1)(image, None))
        explanation = gradcam_fast.explain(model, image, layer=layer, method="ablation", chunk=1)
        assert explanation.score > 0 and explanation.valid
        assert (explanation.heatmap - theirs).abs().max() <= 1e-5


def test_pytorch_grad_cam_puts_a_large_negative_number_where_a_value_is_negative_and_ours_is_exact(images):
    peer = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    model, image = signed(), images[:1]
    ours = gradcam_fast.explain(model, image, layer="1", method="ablation", target=1).heatmap
    theirs = peer.AblationCAM(model, [model[1]], batch_size=1)(image, targets=[targets.ClassifierOutputTarget(1)])
    exact = naive_methods.scaled(naive_methods.ablation(model, "1", image, naive.of_class(1)), (16, 16))
    assert (ours - exact).abs().max() <= EXACT < (torch.from_numpy(theirs) - exact).abs().max()


def test_runs_in_half_precision(images):
    model = Mlp()
    expected = gradcam_fast.explain(model, images, layer="trunk", method="ablation", target=1).heatmap
    half = gradcam_fast.explain(model.bfloat16(), images.bfloat16(), layer="trunk", method="ablation", target=1)
    correlation = torch.corrcoef(torch.stack([half.heatmap.flatten(), expected.flatten()]))[0, 1]
    assert half.valid.all() and correlation > 0.95


def test_heads_are_told_apart_by_target_and_layer_though_it_is_remembered(images):
    """What is remembered of one question must not decide about another."""
    model = Mlp()
    asked = {"method": "ablation", "normalize": "none", "relu": False}
    first = [gradcam_fast.explain(model, images, target=1, layer="trunk", **asked).heatmap for _ in range(2)]
    assert torch.equal(*first)
    affine = ConvNet()
    assert gradcam_fast.explain(affine, images, target=1, layer="features.1", **asked).valid.all()
    affine.runs.clear()
    explained = gradcam_fast.explain(affine, images, target=1, layer="features.4", **asked)
    assert affine.runs == [len(images)]  # one prediction, and nothing is run again
    curved = gradcam_fast.explain(
        affine, images, target=lambda logits: logits[:, 1].tanh(), layer="features.4", **asked
    )
    assert len(affine.runs) > 2
    affine.runs.clear()
    linear = gradcam_fast.explain(affine, images, target=lambda logits: logits[:, 1], layer="features.4", **asked)
    assert affine.runs == [len(images)] and torch.allclose(linear.heatmap, explained.heatmap, atol=1e-5)
    assert not torch.allclose(curved.heatmap, explained.heatmap, atol=1e-3)
