"""Randomisation compares a model with itself without what it has learnt, and gives the model back unharmed."""

import dataclasses

import pytest
import torch
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from torch import nn

import gradcam_fast
from gradcam_fast import metrics


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip
    model[-1].weight.data.abs_()  # so that every map shows something
    return model


def images(count=2):
    return torch.rand(count, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_layers_are_randomised_from_the_last_to_the_first():
    result = metrics.randomisation(gradcam_fast.Explainer(network(), layer="4"), images())
    assert result.layers == ("7", "3", "1", "0")
    assert result.rank_correlation.shape == result.ssim.shape == (4, 2)
    assert (result.rank_correlation.abs() <= 1).all() and (result.ssim.abs() <= 1).all()


def test_the_comparisons_are_scipys_and_scikit_images():
    model, batch = network(), images()
    explainer = gradcam_fast.Explainer(model, layer="4")
    before = explainer(batch)
    result = metrics.randomisation(explainer, batch, layers=["7"], seed=3)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model[7].parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn * parameter.std(correction=0) + parameter.mean())
    after = explainer(batch, before.target)
    for i in range(2):
        trained, random = before.heatmap[i].numpy(), after.heatmap[i].numpy()
        assert float(result.rank_correlation[0, i]) == pytest.approx(
            spearmanr(trained.ravel(), random.ravel()).statistic
        )
        assert float(result.ssim[0, i]) == pytest.approx(
            structural_similarity(trained, random, data_range=1.0), abs=1e-6
        )


def test_a_flat_map_or_one_with_nan_has_no_similarity():
    explanation = gradcam_fast.explain(network(), images(3), layer="4")
    heat = explanation.heatmap.clone()
    heat[0], heat[1, 2, 3] = 0.5, torch.nan
    explainer = gradcam_fast.Explainer(network(), layer="4")
    broken = dataclasses.replace(explanation, heatmap=heat)
    result = metrics.randomisation(explainer, images(3), explanation=broken, layers=["7"])
    assert result.rank_correlation.isnan().tolist() == result.ssim.isnan().tolist() == [[True, True, False]]


def test_activations_keep_their_scale():
    model, scales = network(), []
    handle = model[3].register_forward_hook(lambda module, inputs, output: scales.append(float(output.std())))
    metrics.randomisation(gradcam_fast.Explainer(model, layer="4"), images(), layers=["7", "3", "1", "0"])
    handle.remove()
    assert all(scales[0] / 3 < scale < scales[0] * 3 for scale in scales)


def test_layers_behind_stay_random_only_when_cascading():
    explainer = gradcam_fast.Explainer(network(), layer="4")
    alone = metrics.randomisation(explainer, images(), layers=["0"], cascading=False).rank_correlation
    last_of_two = metrics.randomisation(explainer, images(), layers=["0", "0"], cascading=False).rank_correlation
    assert torch.equal(alone[0], last_of_two[0])
    cascade = metrics.randomisation(explainer, images(), layers=["7", "0"]).rank_correlation[1]
    one_by_one = metrics.randomisation(explainer, images(), layers=["7", "0"], cascading=False).rank_correlation[1]
    assert not torch.equal(cascade, one_by_one)


@pytest.mark.parametrize("cascading", [True, False])
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_model_is_given_back_to_the_bit(cascading, error):
    model = network()
    before, calls = state(model), []

    def fail(*_):
        calls.append(1)
        if error and len(calls) == 3:
            raise error

    explainer = gradcam_fast.Explainer(model, layer="4")
    explanation = explainer(images())
    handle = model[0].register_forward_pre_hook(fail)
    try:
        metrics.randomisation(explainer, images(), explanation=explanation, cascading=cascading)
    except BaseException as raised:
        assert error and isinstance(raised, error)
    else:
        assert error is None
    handle.remove()
    after = state(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_model_is_given_back_when_a_comparison_fails(monkeypatch, error):
    model = network()
    before = state(model)

    def fail(*_, **__):
        raise error

    monkeypatch.setattr("skimage.metrics.structural_similarity", fail)
    with pytest.raises(error) as raised:
        metrics.randomisation(gradcam_fast.Explainer(model, layer="4"), images())
    after = state(model)
    assert raised.tb is not None  # which holds what the failed call was in the middle of
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_global_random_numbers_are_left_alone():
    explainer = gradcam_fast.Explainer(network(), layer="4")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    metrics.stability(explainer, images(), samples=2)
    metrics.randomisation(explainer, images())
    assert torch.equal(torch.rand(3), expected)


def test_a_layer_without_weights_is_refused():
    with pytest.raises(ValueError, match="layer '2' has no weights in this model; give names such as 7, 3, 1"):
        metrics.randomisation(gradcam_fast.Explainer(network()), images(), layers=["2"])
    with pytest.raises(TypeError, match=r"explainer is a Sequential; give a gradcam_fast\.Explainer"):
        metrics.randomisation(network(), images())


def test_k_classes_have_a_result_each():
    result = metrics.randomisation(gradcam_fast.Explainer(network(), layer="4"), images(), [[0, 1]], layers=["7"])
    assert result.ssim.shape == (1, 2, 2)
