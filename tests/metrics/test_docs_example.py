"""The table of docs/metrics.md on EfficientNet-Lite0 has the values that are measured on the demo's photos."""

import functools
import re

import pytest
import torch
from support.documents import DOCS

import gradcam_fast
from gradcam_fast import metrics
from gradcam_fast.cli.demo import sample_photos
from gradcam_fast.pipeline.networks import load_network

pytestmark = pytest.mark.slow

METHODS = ("gradcam", "layercam", "ablation", "eigencam")
HEAD = ("insertion", "deletion", "confidence_drop")
# Insertion and deletion, measured by a program of its own before this package had metrics. It took pixels of equal heat
# row by row, which counts where much of a map is zero, as it is in Eigen-CAM's.
EARLIER = {"gradcam": (0.613, 0.203), "ablation": (0.611, 0.204), "random": (0.260, 0.242)}
ROW_BY_ROW = {"eigencam": (0.630, 0.215)}
# As good as three digits can be.
ROUNDED = 6e-4


@functools.cache
def demo():
    """EfficientNet-Lite0, the demo's four photos, and their explanation."""
    photos = sample_photos()[0]
    if len(photos) < 4:
        pytest.skip("foolbox, which has two of the photos, is not installed")
    network = load_network("efficientnet_lite0")
    images = network.preprocess(photos).images
    return network.model, images, gradcam_fast.explain(network.model, images)


def areas(row):
    """The mean areas under insertion and deletion curves, and the mean drop."""
    model, images, explanation = demo()
    if row in METHODS:
        heat = gradcam_fast.explain(model, images, target=explanation.target, method=row).heatmap
    elif row == "saliency":
        heat = metrics.saliency_map(model, images, explanation.target)
    else:
        heat = {"random": metrics.random_map, "centre": metrics.centre_map, "edges": metrics.edge_map}[row](images)
    asked = model, images, heat, explanation.target
    return (
        float(metrics.insertion(*asked, steps=28, baseline="blur").area.mean()),
        float(metrics.deletion(*asked, steps=28, baseline="zeros").area.mean()),
        float(metrics.confidence_drop(*asked).mean()),
    )


def table():
    """The numbers of the table, by row."""
    text = (DOCS / "metrics.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| (\w+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    return {row: tuple(map(float, values)) for row, *values in lines}


@pytest.mark.parametrize("row", [*METHODS, *metrics.BASELINE_MAPS])
def test_the_table_has_the_values_measured(row):
    assert f"| | {' | '.join(f'{name} {arrow}' for name, arrow in zip(HEAD, '↑↓↓', strict=True))} |" in (
        DOCS / "metrics.md"
    ).read_text(encoding="utf-8")
    found = areas(row)
    assert found == pytest.approx(table()[row], abs=ROUNDED)
    if row in EARLIER:
        assert found[:2] == pytest.approx(EARLIER[row], abs=ROUNDED)


@pytest.mark.parametrize("row", ROW_BY_ROW)
def test_equal_heat_taken_row_by_row_has_the_values_of_an_earlier_program(row):
    model, images, explanation = demo()
    heat = gradcam_fast.explain(model, images, target=explanation.target, method=row).heatmap
    heat = heat + torch.linspace(1e-6, 0, heat[0].numel()).view_as(heat[0])
    asked = model, images, heat, explanation.target
    found = float(metrics.insertion(*asked).area.mean()), float(metrics.deletion(*asked).area.mean())
    assert found == pytest.approx(ROW_BY_ROW[row], abs=ROUNDED)


def test_what_the_page_says_of_the_baselines_is_so():
    values = table()
    assert set(values) == {*METHODS, *metrics.BASELINE_MAPS}
    best_insertion, best_deletion, best_drop = (
        pick(values, key=lambda row: values[row][column]) for column, pick in enumerate((max, min, min))
    )
    assert best_insertion in METHODS and best_deletion == "saliency" and best_drop == "centre"
    assert sorted(values, key=lambda row: values[row][0])[:2] == ["random", "saliency"]
    assert values["random"][1] < values["centre"][1] and values["random"][2] < values["edges"][2]
    for row in METHODS:
        assert values[row][0] > values["centre"][0] > values["random"][0]
        assert values[row][1] < values["random"][1]


def test_random_heat_on_a_coarse_grid_has_the_values_of_the_page():
    model, images, explanation = demo()
    asked = model, images, metrics.random_map(images, grid=7), explanation.target
    found = float(metrics.insertion(*asked).area.mean()), float(metrics.deletion(*asked).area.mean())
    text = " ".join((DOCS / "metrics.md").read_text(encoding="utf-8").split())
    assert f"a grid of 7x7 has an insertion of {found[0]:.3f} and a deletion of {found[1]:.3f}" in text
