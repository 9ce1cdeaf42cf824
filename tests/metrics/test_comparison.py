"""A comparison holds what the metrics say for each explainer and baseline, with intervals of the right size."""

import numpy
import pytest
import torch
from support.networks import ConvNet
from torch import nn

import gradcam_fast
from gradcam_fast import metrics
from gradcam_fast.metrics import Comparison, compare


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def table(network, images):
    explainers = {name: gradcam_fast.Explainer(network, method=name) for name in ("gradcam", "layercam")}
    return compare(explainers, images, metrics=["deletion", "gini", "mass_accuracy"], objects=BOXES, batch_size=2)


BOXES = torch.tensor([[2.0, 2, 10, 10]]).expand(5, 4)


def test_each_value_is_what_the_metric_says_of_that_map(table, network, images):
    explanation = gradcam_fast.explain(network, images, method="layercam")
    row = table.values["layercam"]
    torch.testing.assert_close(row["deletion"], metrics.deletion(network, images, explanation).area, atol=1e-5, rtol=0)
    torch.testing.assert_close(row["gini"], metrics.complexity(explanation.heatmap).gini, atol=1e-5, rtol=0)
    mass = metrics.mass_accuracy(explanation.heatmap, BOXES)
    torch.testing.assert_close(row["mass_accuracy"], mass, atol=1e-5, rtol=0)


def test_baselines_are_judged_for_the_same_classes(table, network, images):
    assert list(table.values) == ["gradcam", "layercam", "random", "centre", "edges", "saliency"]
    classes = network(images).argmax(1)
    expected = metrics.deletion(network, images, metrics.centre_map(images), classes).area
    torch.testing.assert_close(table.values["centre"]["deletion"], expected, atol=1e-5, rtol=0)


def test_the_random_map_of_an_image_does_not_depend_on_the_batches(table, network, images):
    classes = network(images).argmax(1)
    expected = metrics.deletion(network, images, metrics.random_map(images), classes).area
    torch.testing.assert_close(table.values["random"]["deletion"], expected, atol=1e-5, rtol=0)
    explainers = {"gradcam": gradcam_fast.Explainer(network)}
    some = compare(explainers, images[3:], metrics=["deletion"], baselines=["random"], numbers=[3, 4])
    torch.testing.assert_close(some.values["random"]["deletion"], expected[3:], atol=1e-5, rtol=0)


def test_a_comparison_costs_what_its_metrics_say(images):
    model = ConvNet()
    explainers = {
        name: gradcam_fast.Explainer(model, layer="features", method=name) for name in ("gradcam", "layercam")
    }
    compare(explainers, images, metrics=["insertion", "deletion", "confidence_drop", "gini"])
    rows, explanations, saliency = 6, 2, 2  # saliency has a prediction and a forward with a graph
    assert sum(model.runs) == len(images) * (rows * (28 + 28 + 1) + explanations + saliency)
    assert max(model.runs) == 4  # the images that a CPU takes at once


def test_an_interval_covers_the_mean_as_often_as_it_says():
    generator = numpy.random.default_rng(0)
    covered = 0
    for seed in range(60):
        values = torch.from_numpy(generator.normal(2.0, 1.0, 40).astype("float32"))
        mean, low, high = Comparison({"a": {"deletion": values}}, 0.9, seed).interval("a", "deletion")
        assert low < mean < high
        covered += low <= 2.0 <= high
    assert 46 <= covered <= 60


def test_images_without_a_value_are_left_out_of_the_mean():
    values = torch.tensor([1.0, torch.nan, 3.0])
    assert Comparison({"a": {"deletion": values}}).interval("a", "deletion").mean == 2
    assert Comparison({"a": {"deletion": values[:1]}}).interval("a", "deletion")[0] == 1


def test_the_markdown_table_marks_the_best_mean_in_the_better_direction():
    values = {
        "good": {"insertion": torch.tensor([0.9, 0.8]), "deletion": torch.tensor([0.1, 0.2])},
        "bad": {"insertion": torch.tensor([0.5, 0.4]), "deletion": torch.tensor([0.4, 0.3])},
    }
    lines = Comparison(values).to_markdown().splitlines()
    assert lines[0] == "|  | insertion ↑ | deletion ↓ |"
    assert "**0.850**" in lines[2] and "**0.150**" in lines[2] and "**" not in lines[3]


def test_pandas_and_the_figure_show_every_row(table):
    frame = table.to_pandas()
    assert list(frame.index) == list(table.values)
    assert frame["deletion", "mean"]["gradcam"] == pytest.approx(float(table.values["gradcam"]["deletion"].mean()))
    figure = table.figure()
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        "deletion (lower is better)", "gini (higher is better)", "mass_accuracy (higher is better)",
    ]  # fmt: skip
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(table.values)


def test_what_cannot_be_compared_is_refused(network, images):
    explainer = gradcam_fast.Explainer(network)
    for choices, says in (
        ({"explainers": {}}, "explainers names no explainer"),
        ({"metrics": ["beauty"]}, "metrics has 'beauty'"),
        ({"baselines": ["noise"]}, "baselines has 'noise'"),
        ({"metrics": ["pointing_game"]}, "give objects="),
        ({"explainers": {"random": explainer}}, "both named 'random'"),
        ({"numbers": [0, 1]}, "numbers has 2 entries for 5 images"),
        ({"explainers": {"a": explainer, "b": gradcam_fast.Explainer(nn.Sequential(network))}}, "different models"),
    ):
        with pytest.raises(ValueError, match=says):
            compare(**{"explainers": {"gradcam": explainer}, "images": images, **choices})
