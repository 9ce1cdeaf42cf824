"""Eigen-CAM, EigenGrad-CAM and smooth="eigen": the first principal component, by NumPy's SVD and by hand."""

import numpy
import pytest
import torch
from support import naive
from support.networks import ConvNet, Muted, PatchNet, Wrapped
from support.tolerances import PEER, SAME_INPUTS
from support.unchanged import unchanged

import gradcam_fast
from gradcam_fast.methods import first_component
from gradcam_fast.ops.arguments import METHODS as CAM_METHODS

SIZE = (16, 16)
EXACT = SAME_INPUTS[torch.float32]


def projection(maps, direction):
    """One image's maps (C,h,w) on their first component, by NumPy's SVD in float64; it correlates with direction."""
    positions = maps.double().numpy().reshape(len(maps), -1).T
    positions = positions - positions.mean(0)
    component = positions @ numpy.linalg.svd(positions)[2][0]
    if (component * (direction.double().numpy().ravel() - direction.double().numpy().mean())).sum() < 0:
        component = -component
    return torch.from_numpy(component.reshape(maps.shape[1:]))


def scaled(raw, size=SIZE):
    """Maps (B,h,w) after ReLU, resized, to [0,1]."""
    raw = torch.nn.functional.interpolate(raw.clamp(min=0)[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    low, high = raw.amin((1, 2), keepdim=True), raw.amax((1, 2), keepdim=True)
    return (raw - low) / (high - low)


@pytest.mark.parametrize("shape", [(12, 4, 4), (3, 6, 5), (1, 2, 2), (7, 9), (5, 2, 3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_component_is_that_of_a_singular_value_decomposition(shape, dtype):
    maps = torch.randn(3, *shape, dtype=dtype)
    components = first_component(maps)
    assert components.dtype == dtype
    expected = torch.stack([projection(image, image.mean(0)) for image in maps])
    assert (components - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_component_computed_by_hand():
    # The channels vary by (3, 4) and by (-3, -4): the first direction is (.6, .8), the projections 5 and -5.
    maps = torch.tensor([[[[3.0, -3.0]], [[4.0, -4.0]]]])
    assert torch.allclose(first_component(maps), torch.tensor([[[5.0, -5.0]]]))


def test_a_component_correlates_with_the_mean_of_the_channels_or_the_direction_given():
    maps = torch.rand(4, 8, 5, 5)
    mean = maps.mean(1)
    centred = mean - mean.mean((1, 2), keepdim=True)
    assert ((first_component(maps) * centred).sum((1, 2)) > 0).all()
    assert torch.equal(first_component(maps, -mean), -first_component(maps))


def test_large_and_small_values_have_the_same_component():
    maps = torch.randn(2, 6, 4, 4)
    for scale in (1e-15, 1e15):
        assert torch.allclose(first_component(maps * scale) / scale, first_component(maps), rtol=1e-4, atol=1e-5)


def test_an_image_that_is_not_finite_leaves_the_others_as_they_are():
    maps = torch.randn(3, 6, 4, 4)
    expected = first_component(maps)
    maps[1, 2, 0, 0] = torch.nan
    components = first_component(maps)
    assert components[1].isnan().all() and torch.equal(components[::2], expected[::2])


def test_eigencam_is_the_component_of_the_activations(images):
    model = ConvNet()
    explanation = gradcam_fast.explain(model, images, layer="features.4", method="eigencam")
    activations = model.features(images).detach()
    expected = scaled(torch.stack([projection(image, image.mean(0)) for image in activations]))
    assert (explanation.heatmap - expected).abs().max() <= EXACT
    logits = model(images)
    assert torch.allclose(explanation.logits, logits) and torch.equal(explanation.target, logits.argmax(1))
    assert torch.allclose(explanation.score, logits.amax(1))
    assert explanation.valid.all() and not explanation.heatmap.requires_grad


def test_eigencam_runs_the_model_once_without_a_graph(images):
    model = ConvNet()
    grads_enabled = []
    model.at_head = lambda maps: grads_enabled.append(torch.is_grad_enabled())
    gradcam_fast.explain(model, images, layer="features.4", method="eigencam")
    assert model.calls == 1 and grads_enabled == [False]


def test_eigencam_gives_every_class_the_same_map(images):
    explanation = gradcam_fast.explain(ConvNet(), images, layer="features.4", method="eigencam", topk=3)
    assert explanation.heatmap.shape == (3, 3, 16, 16) and explanation.score.shape == (3, 3)
    assert torch.equal(explanation.heatmap[:, 0], explanation.heatmap[:, 2])


def test_eigencam_finds_the_layer_that_gradcam_finds(images):
    model = ConvNet()
    explainer = gradcam_fast.Explainer(model, method="eigencam")
    found, remembered = explainer(images), explainer(images)
    assert found.layer == remembered.layer == gradcam_fast.explain(model, images).layer
    named = gradcam_fast.explain(model, images, layer=found.layer, method="eigencam")
    assert torch.equal(found.heatmap, named.heatmap) and torch.equal(remembered.heatmap, named.heatmap)


@pytest.mark.parametrize(
    "model",
    [
        Muted(),
        Wrapped(lambda logits: [{"boxes": logits[i : i + 1].detach()} for i in range(len(logits))]),
        Wrapped(lambda logits: logits.argmax(1)),
    ],
    ids=["without gradients", "detections", "integers"],
)
def test_eigencam_needs_neither_a_gradient_nor_logits(model, images):
    explanation = gradcam_fast.explain(model, images, layer="features.4", method="eigencam")
    expected = scaled(torch.stack([projection(a, a.mean(0)) for a in model.features(images).detach()]))
    assert (explanation.heatmap - expected).abs().max() <= EXACT and explanation.valid.all()
    if not isinstance(model, Muted):
        assert explanation.target is None and explanation.score.isnan().all()


def test_a_layer_that_cannot_be_found_without_a_gradient_is_asked_for(images):
    with pytest.raises(gradcam_fast.exceptions.ScoreDetached, match=r"detached.*or name a layer with layer="):
        gradcam_fast.explain(Muted(), images, method="eigencam")


def test_eigencam_reads_tokens(images):
    model = PatchNet(class_tokens=1)
    explanation = gradcam_fast.explain(model, images, layer="norm", method="eigencam", target=0)
    tokens, _, _ = naive.full_graph(model, "norm", images, naive.of_class(0))
    maps = tokens[:, 1:].mT.unflatten(2, (2, 2))
    expected = scaled(torch.stack([projection(image, image.mean(0)) for image in maps]))
    assert (explanation.heatmap - expected).abs().max() <= EXACT


def test_eigencam_of_several_layers_is_the_mean_of_their_maps(images):
    model, layers = ConvNet(), ["features.1", "features.4"]
    both = gradcam_fast.explain(model, images, layer=layers, method="eigencam").heatmap
    mean = sum(gradcam_fast.explain(model, images, layer=layer, method="eigencam").heatmap for layer in layers) / 2
    low, high = mean.amin((1, 2), keepdim=True), mean.amax((1, 2), keepdim=True)
    assert (both - (mean - low) / (high - low)).abs().max() <= EXACT


@pytest.mark.parametrize("method", ["eigencam", "eigengradcam"])
def test_the_images_that_when_chooses_have_the_maps_they_have_without_it(method, images):
    model, choices = ConvNet(), {"layer": "features.4", "method": method}
    everyone = gradcam_fast.Explainer(model, **choices)(images)
    some = gradcam_fast.Explainer(model, **choices, when=lambda logits: torch.tensor([True, False, True]))(images)
    assert torch.equal(some.heatmap[::2], everyone.heatmap[::2]) and not some.heatmap[1].any()
    assert some.reason == ["", "not chosen", ""]
    none = gradcam_fast.Explainer(model, **choices, when=lambda logits: torch.zeros(3, dtype=torch.bool))(images)
    assert none.reason == ["not chosen"] * 3


def test_a_constant_layer_is_flat(images):
    model = ConvNet()
    with torch.no_grad():
        model.features[3].weight.zero_()
    explanation = gradcam_fast.explain(model, images, layer="features.4", method="eigencam")
    assert explanation.reason == ["flat"] * 3


@pytest.mark.parametrize("target", [2, [[0, 3]] * 3])
def test_eigengradcam_is_the_component_of_gradients_times_activations(target, images):
    model = ConvNet()
    explanation = gradcam_fast.explain(model, images, layer="features.4", method="eigengradcam", target=target)
    heatmaps = explanation.heatmap.unsqueeze(1) if target == 2 else explanation.heatmap
    for place, category in enumerate([2] if target == 2 else [0, 3]):
        activations, gradients, _ = naive.full_graph(model, "features.4", images, naive.of_class(category))
        pairs = zip(activations * gradients, activations, strict=True)
        expected = scaled(torch.stack([projection(product, maps.mean(0)) for product, maps in pairs]))
        assert (heatmaps[:, place] - expected).abs().max() <= EXACT


@pytest.mark.parametrize("method", CAM_METHODS)
def test_eigen_smoothing_is_the_component_of_the_weighted_channels(method, images):
    model, choices = ConvNet(), {"layer": "features.4", "method": method, "target": 1}
    smooth = gradcam_fast.explain(model, images, **choices, smooth="eigen").heatmap
    activations, gradients, _ = naive.full_graph(model, "features.4", images, naive.of_class(1))
    terms = gradcam_fast.reference.terms(activations, gradients.unsqueeze(1), method)[:, 0]
    sums = gradcam_fast.reference.raw_map(activations, gradients.unsqueeze(1), method)[0][:, 0]
    assert torch.allclose(terms.sum(1), sums, atol=1e-7)
    expected = scaled(torch.stack([projection(image, total) for image, total in zip(terms, sums, strict=True)]))
    assert (smooth - expected).abs().max() <= EXACT


@pytest.mark.parametrize("method", ["eigencam", "eigengradcam"])
def test_pytorch_grad_cam_has_the_same_maps_up_to_the_sign(method, images):
    peer = pytest.importorskip("pytorch_grad_cam")
    model = ConvNet()
    cam = {"eigencam": peer.EigenCAM, "eigengradcam": peer.EigenGradCAM}[method](model, [model.features[4]])
    choices = {"layer": "features.4", "method": method, "normalize": "none", "relu": False, "size": 4}
    for image in images.split(1):
        theirs = torch.from_numpy(cam(image, targets=None))
        raw = gradcam_fast.explain(model, image, **choices)
        either_sign = [scaled(sign * raw.heatmap) for sign in (1, -1)]
        assert min((ours - theirs).abs().max() for ours in either_sign) <= PEER


@pytest.mark.parametrize("method", ["eigencam", "eigengradcam"])
def test_the_model_stays_as_it_is(method, images):
    model = ConvNet(dropout=0.5).train()
    with unchanged(model):
        gradcam_fast.explain(model, images, layer="features.4", method=method)
    model.at_head = lambda maps: (_ for _ in ()).throw(RuntimeError("broken"))
    with unchanged(model), pytest.raises(RuntimeError, match="broken"):
        gradcam_fast.explain(model, images, layer="features.4", method=method)


def test_smoothing_and_methods_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match=r"smooth='eigen' .* method='eigencam' does not make"):
        gradcam_fast.Explainer(ConvNet(), method="eigencam", smooth="eigen")
    with pytest.raises(ValueError, match="smooth='blur' is unknown"):
        gradcam_fast.Explainer(ConvNet(), smooth="blur")
    with pytest.raises(ValueError, match="method='eigencam' and cuda_graph=True"):
        gradcam_fast.Explainer(ConvNet(), method="eigencam", cuda_graph=True)
