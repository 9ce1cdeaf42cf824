"""smooth="noise": SmoothGrad's mean gradients, and Smooth Grad-CAM++'s weights, by a loop over the samples."""

import pytest
import torch
from support import naive
from support.networks import ConvNet, PatchNet
from support.tolerances import SAME_INPUTS
from support.unchanged import unchanged
from torch import nn

import gradcam_fast
from gradcam_fast import reference
from gradcam_fast.ops.arguments import METHODS as CAM_METHODS

EXACT = SAME_INPUTS[torch.float32]


def explain(model, images, **choices):
    return gradcam_fast.explain(model, images, **{"layer": "features.4", "smooth": "noise"} | choices)


def noisy_gradients(model, layer, images, category, *, samples=8, sigma=0.15, seed=0):
    """The gradients of each sample, (samples,B,C,h,w), in float64."""
    generator = torch.Generator().manual_seed(seed)
    gradients = []
    for _ in range(samples):
        noise = torch.randn(images.shape[1:], generator=generator)
        ranges = torch.stack([image.max() - image.min() for image in images])[:, None, None, None]
        _, of_sample, _ = naive.full_graph(model, layer, images + sigma * ranges * noise, naive.of_class(category))
        gradients.append(of_sample)
    return torch.stack(gradients).double()


def curved():
    """A network whose gradients at the layer depend on the image."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Softplus(), nn.Conv2d(6, 4, 3), nn.Tanh(), nn.Flatten(),
        nn.Linear(400, 5),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("method", [method for method in CAM_METHODS if method != "gradcam++"])
@pytest.mark.parametrize("choices", [{}, {"samples": 3, "sigma": 0.4, "seed": 7}])
def test_the_gradients_are_the_mean_over_noisy_copies(method, choices, images):
    model = curved()
    explanation = explain(model, images, layer="1", method=method, target=2, **choices)
    gradients = noisy_gradients(model, "1", images, 2, **choices).mean(0)
    activations = model[:2](images).detach().double()
    expected, _, _ = reference.cam(activations, gradients, (16, 16), method=method)
    assert (explanation.heatmap - expected).abs().max() <= 1e-4
    plain = explain(model, images, layer="1", method=method, target=2, smooth=None)
    assert (plain.heatmap - expected).abs().max() > 1e-3
    assert torch.equal(plain.logits, explanation.logits) and torch.equal(plain.score, explanation.score)


def test_smooth_gradcam_plus_plus_averages_each_derivative(images):
    model = curved()
    explanation = explain(model, images, layer="1", method="gradcam++", target=2, samples=5)
    g = noisy_gradients(model, "1", images, 2, samples=5)
    activations = model[:2](images).detach().double()
    first, second, third = g.mean(0), g.square().mean(0), g.pow(3).mean(0)
    denominator = 2 * second + activations.sum((2, 3), keepdim=True) * third
    alphas = torch.where(denominator > 0, second / denominator, 0)
    weights = (alphas * first.relu()).sum((2, 3), keepdim=True)
    expected, _, _ = reference.cam(activations, weights.expand_as(activations), (16, 16))
    assert (explanation.heatmap - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("method", CAM_METHODS)
def test_next_to_no_noise_gives_the_method_itself(method, images):
    model = curved()
    smooth = explain(model, images, layer="1", method=method, target=1, sigma=1e-7, samples=2).heatmap
    plain = explain(model, images, layer="1", method=method, target=1, smooth=None).heatmap
    assert (smooth - plain).abs().max() <= 1e-4


def test_smooth_gradcam_plus_plus_computed_by_hand():
    # At the layer the gradient is 2x of x = 1, and noise changes it to 2 (1 + e): of one sample the averages are powers
    # of one gradient, and alpha g = 1 / (2 + S g).
    class Squares(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(1, 1, 1, bias=False)
            nn.init.ones_(self.layer.weight)

        def forward(self, images):
            return self.layer(images).square().sum((2, 3))

    image = torch.tensor([[[[1.0, 3.0]]]])
    choices = {
        "layer": "layer",
        "method": "gradcam++",
        "samples": 1,
        "sigma": 0.01,
        "normalize": "none",
        "size": (1, 2),
    }
    explanation = explain(Squares(), image, **choices)
    noise = torch.randn(1, 1, 2, generator=torch.Generator().manual_seed(0))
    gradients = 2 * (image[0] + 0.01 * 2 * noise)
    weight = (gradients / (2 + 4 * gradients) / gradients * gradients).sum()
    assert torch.allclose(explanation.heatmap, weight * image[0], rtol=1e-5)


def test_the_seed_decides_and_no_global_generator_is_touched(images):
    model, state = curved(), torch.random.get_rng_state()
    first = explain(model, images, layer="1", target=1)
    assert torch.equal(first.heatmap, explain(model, images, layer="1", target=1, seed=0).heatmap)
    assert not torch.equal(first.heatmap, explain(model, images, layer="1", target=1, seed=1).heatmap)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_image_has_the_same_noise_in_any_batch(images):
    model = curved()
    batch = explain(model, images, layer="1", target=1).heatmap
    for place, image in enumerate(images.split(1)):
        assert (explain(model, image, layer="1", target=1).heatmap[0] - batch[place]).abs().max() <= 1e-4


@pytest.mark.parametrize(("chunk", "runs"), [(100, [3, 24]), (9, [3, 9, 9, 6]), (1, [3] * 9)])
def test_as_many_copies_run_at_once_as_the_chunk_has_room_for(chunk, runs, images):
    model = ConvNet()
    expected = explain(model, images, target=1).heatmap
    model.runs.clear()
    assert (explain(model, images, target=1, chunk=chunk).heatmap - expected).abs().max() <= EXACT
    assert model.runs == runs


def test_the_classes_are_those_of_the_images_themselves(images):
    model = curved()
    predicted = explain(model, images, layer="1", topk=2, sigma=2.0)
    named = explain(model, images, layer="1", target=model(images).topk(2).indices, sigma=2.0)
    assert torch.equal(predicted.heatmap, named.heatmap) and torch.equal(predicted.target, named.target)


def test_a_callable_target_sees_one_batch_at_a_time(images):
    model, offsets, seen = curved(), torch.tensor([1.0, 2.0, 3.0]), []

    def score(logits):
        seen.append(len(logits))
        return logits[:, 1] * offsets

    explanation = explain(model, images, layer="1", target=score)
    assert set(seen) == {3}
    assert (explanation.heatmap - explain(model, images, layer="1", target=1).heatmap).abs().max() <= EXACT


def test_an_image_that_is_not_finite_leaves_the_others_as_they_are(images):
    model = curved()
    expected = explain(model, images, layer="1", target=1)
    images[1, 0, 0, 0] = torch.nan
    explanation = explain(model, images, layer="1", target=1)
    assert explanation.reason == ["", "not finite", ""]
    assert torch.equal(explanation.heatmap[::2], expected.heatmap[::2])


def test_tokens_several_layers_and_eigengradcam(images):
    model = PatchNet(class_tokens=1)
    assert explain(model, images, layer="norm", target=1).valid.all()
    network = curved()
    assert explain(network, images, layer=["1", "3"], target=1).valid.all()
    explanation = explain(network, images, layer="1", target=1, method="eigengradcam", normalize="none", relu=False)
    terms = noisy_gradients(network, "1", images, 1).mean(0) * network[:2](images).detach()
    expected = gradcam_fast.methods.first_component(terms, network[:2](images).detach().mean(1))
    small = nn.functional.interpolate(expected[:, None], (16, 16), mode="bilinear", align_corners=False)[:, 0]
    assert (explanation.heatmap - small).abs().max() <= 1e-4 * small.abs().max()


def test_noise_with_both_other_smoothings(images):
    model = curved()
    explanation = explain(model, images, layer="1", target=1, smooth=["noise", "eigen", "augment"])
    assert explanation.valid.all() and explanation.heatmap.shape == (3, 16, 16)


def test_only_chosen_images_are_explained(images):
    model = curved()
    explainer = gradcam_fast.Explainer(
        model, layer="1", smooth="noise", when=lambda logits: torch.tensor([True, False, True])
    )
    explanation = explainer(images, 1)
    expected = explain(model, images, layer="1", target=1)
    assert explanation.reason[1] == "not chosen" and torch.equal(explanation.heatmap[::2], expected.heatmap[::2])


def test_progress_is_told(images):
    told = []
    explain(curved(), images, layer="1", chunk=9, progress=lambda done, total: told.append((done, total)))
    assert told == [(3, 8), (6, 8), (8, 8)]


def test_the_model_stays_as_it_is(images):
    model = ConvNet(dropout=0.5).train()
    with unchanged(model):
        explain(model, images)


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ({"samples": 0}, ValueError, "samples=0 is below 1"),
        ({"samples": 2.0}, TypeError, "samples=2.0 is a float"),
        ({"sigma": 0}, ValueError, "sigma=0 is no deviation"),
        ({"sigma": -1.0}, ValueError, "sigma=-1.0 is no deviation"),
        ({"sigma": float("nan")}, ValueError, "sigma=nan is no deviation"),
        ({"sigma": "0.1"}, TypeError, "sigma='0.1' is a str"),
        ({"seed": -1}, ValueError, "seed=-1 is below 0"),
        (
            {"seed": None, "smooth": None, "samples": 3},
            ValueError,
            "samples= is for smooth='noise', not for smooth=None",
        ),
        ({"smooth": 3}, TypeError, "smooth=3 is a int; give one of 'augment', 'eigen', 'noise', a tuple"),
        ({"smooth": "blur"}, ValueError, "smooth='blur' is unknown"),
        (
            {"method": "ablation"},
            ValueError,
            "smooth='noise' averages gradients, which method='ablation' does not take",
        ),
        ({"cuda_graph": True}, ValueError, "both smooth='noise' and cuda_graph=True"),
    ],
)
def test_choices_that_cannot_work_are_refused(choices, error, message):
    with pytest.raises(error, match=message):
        gradcam_fast.Explainer(ConvNet(), **{"smooth": "noise"} | choices)
