"""An explainer plugs into Quantus' metrics, which then agree with those here where both have them."""

import numpy
import pytest
import torch
from torch import nn

import gradcam_fast
from gradcam_fast import metrics

quantus = pytest.importorskip("quantus", reason="Quantus is not installed (extra peers)")

QUIET = {"disable_warnings": True, "display_progressbar": False}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip
    model[-1].weight.data.abs_()  # so that every map shows something
    return model


@pytest.fixture(scope="module")
def arguments(network):
    batch = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    explainer = gradcam_fast.Explainer(network)
    with torch.no_grad():
        classes = network(batch).argmax(1)
    masks = torch.zeros(3, 1, 16, 16, dtype=torch.bool)
    masks[:, :, 4:12, 2:10] = True
    return {
        "model": network,
        "x_batch": batch.numpy(),
        "y_batch": classes.numpy(),
        "s_batch": masks.numpy(),
        "explain_func": metrics.explain_func(explainer),
        "device": "cpu",
    }


def test_the_function_gives_the_explainers_heatmaps(network, arguments):
    found = arguments["explain_func"](network, arguments["x_batch"], arguments["y_batch"])
    expected = gradcam_fast.explain(network, torch.from_numpy(arguments["x_batch"])).heatmap
    assert found.shape == (3, 1, 16, 16) and numpy.array_equal(found[:, 0], expected.numpy())


def test_mass_and_rank_accuracy_and_the_pointing_game_agree(network, arguments):
    heat = torch.from_numpy(arguments["explain_func"](network, arguments["x_batch"], arguments["y_batch"])[:, 0])
    masks = torch.from_numpy(arguments["s_batch"][:, 0])
    same = {"abs": False, "normalise": False, **QUIET}
    assert quantus.RelevanceMassAccuracy(**same)(**arguments) == pytest.approx(
        metrics.mass_accuracy(heat, masks).tolist(), abs=1e-6
    )
    assert quantus.RelevanceRankAccuracy(**same)(**arguments) == pytest.approx(
        metrics.rank_accuracy(heat, masks).tolist(), abs=2 / 64
    )
    assert [float(hit) for hit in quantus.PointingGame(**same)(**arguments)] == pytest.approx(
        metrics.pointing_game(heat, masks, tolerance=0).tolist()
    )


def test_sparseness_sensitivity_and_randomisation_run(network, arguments):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    sparseness = quantus.Sparseness(**QUIET)(**arguments)
    assert sparseness == pytest.approx(
        metrics.complexity(
            torch.from_numpy(arguments["explain_func"](network, arguments["x_batch"], arguments["y_batch"])[:, 0])
        ).gini.tolist(),
        abs=1e-5,
    )
    sensitivity = quantus.MaxSensitivity(nr_samples=3, **QUIET)(**arguments)
    assert all(0 <= value < 10 for value in sensitivity) and any(value > 0 for value in sensitivity)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


class Redrawn(nn.Conv2d):
    """Its weights are drawn anew as `metrics.randomisation` does it, so that Quantus draws the same ones."""

    generator = torch.Generator()

    def reset_parameters(self):
        with torch.no_grad():
            for parameter in self.parameters():
                drawn = torch.randn(parameter.shape, generator=self.generator)
                parameter.copy_(drawn * parameter.std(correction=0) + parameter.mean())


@pytest.mark.parametrize(("order", "cascading"), [("top_down", True), ("independent", False)])
def test_randomisation_of_the_same_weights_agrees(arguments, order, cascading):
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ).eval()  # fmt: skip
    convolutions = [model[0], model[2], model[4]]
    for convolution in convolutions:
        convolution.__class__ = Redrawn  # now, because the constructor draws, too
    model[4].weight.data.abs_()
    explainer = gradcam_fast.Explainer(model, layer="3")
    with torch.no_grad():
        classes = model(torch.from_numpy(arguments["x_batch"])).argmax(1)
    asked = {**arguments, "model": model, "y_batch": classes.numpy(), "explain_func": metrics.explain_func(explainer)}
    Redrawn.generator.manual_seed(7)
    theirs = quantus.MPRT(layer_order=order, abs=False, normalise=False, **QUIET)(**asked)
    theirs.pop("original")
    # Independently, Quantus goes from the first layer to the last.
    names = list(theirs)
    ours = metrics.randomisation(
        explainer, torch.from_numpy(arguments["x_batch"]), classes, layers=names, cascading=cascading, seed=7
    )
    assert sorted(names) == ["0", "2", "4"]
    expected = torch.tensor([theirs[name] for name in names])
    torch.testing.assert_close(ours.rank_correlation, expected, atol=1e-4, rtol=0, equal_nan=True)
    assert ours.rank_correlation.isfinite().any(1).all()
