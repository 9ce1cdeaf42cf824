"""Checks that nothing got slower, by what a busy machine hardly changes: ratios within one run, instruction counts.

    make bench-check

The bounds leave room for a busy machine; the ratios reached on an idle one are in REPORT.md. Not part of `make test`.
"""

import json

import instructions
import pytest
import torch
from contenders import build, eager_cam, predict
from read_limit import read_limit
from test_metrics import insertion_and_deletion, randomisation
from test_op import inputs

import gradcam_fast
from gradcam_fast.compat.pytorch_grad_cam import GradCAM
from gradcam_fast.compat.pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

# By how much a count may differ from its baseline, relatively.
SAME_COUNT = 0.03


@pytest.mark.parametrize(("name", "batch", "bound"), [("resnet18", 1, 1.2), ("resnet18", 8, 1.1), ("vit_b_16", 1, 1.3)])
def test_an_explanation_costs_little_more_than_the_prediction(compare, name, batch, bound):
    model, images = build(name), torch.randn(batch, 3, 224, 224)
    prediction, explainer = predict(model), gradcam_fast.Explainer(model)
    ratios = compare(
        "checks: explanations",
        f"{name}, B = {batch}",
        {
            "explainer": lambda: explainer(images),
            "inference": lambda: prediction(images),
            "ten": lambda: explainer(images, topk=10),
        },
        ("explainer/inference", "ten/explainer"),
        seconds=15,
    )
    assert ratios["explainer/inference"] <= bound
    assert name != "resnet18" or ratios["ten/explainer"] <= 1.3


@pytest.mark.parametrize(
    ("contenders", "pair", "bound"),
    [(insertion_and_deletion, "curves/predictions", 1.1), (randomisation, "randomisation/explanations", 1.2)],
)
def test_a_metric_costs_little_more_than_what_it_needs(compare, contenders, pair, bound):
    ratios = compare("checks: metrics", pair, contenders(1), [pair], rounds=8)
    assert ratios[pair] <= bound


def test_an_object_of_compat_for_each_image_costs_little_more_than_the_prediction(compare):
    model, images = build("resnet18"), torch.randn(1, 3, 224, 224)
    prediction = predict(model)

    def construct_call_and_release():
        with GradCAM(model=model, target_layers=[model.layer4]) as cam:
            return cam(input_tensor=images, targets=[ClassifierOutputTarget(281)])

    ratios = compare(
        "checks: compat",
        "resnet18, B = 1",
        {"compat": construct_call_and_release, "inference": lambda: prediction(images)},
        ("compat/inference",),
        seconds=10,
    )
    assert ratios["compat/inference"] <= 1.2


@pytest.mark.parametrize(
    ("shape", "size", "speedup", "bound"),
    [((1, 2048, 7, 7), 224, 3.0, 2.5), ((8, 1280, 7, 7), 224, 4.0, 2.0), ((16, 2048, 7, 7), 224, 2.5, 1.6)],
)
def test_the_op_is_faster_than_eager_and_near_the_read_limit(compare, shape, size, speedup, bound):
    activations, gradients = inputs(shape)
    out = torch.empty(shape[0], size, size)
    ratios = compare(
        "checks: the operator",
        f"{shape} to {size}",
        {
            "fused": lambda: gradcam_fast.cam(activations, gradients, size),
            "limit": lambda: read_limit(activations, gradients, out),
            "eager": lambda: eager_cam(activations, gradients, (size, size)),
        },
        ("eager/fused", "fused/limit"),
        seconds=3,
    )
    assert ratios["eager/fused"] >= speedup
    assert ratios["fused/limit"] <= bound


def test_expanded_gradients_are_no_slower_than_written_out_ones(compare):
    activations, gradients = inputs((16, 2048, 7, 7))
    expanded = gradients[..., :1, :1].expand(gradients.shape)
    ratios = compare(
        "checks: expanded gradients",
        "(16, 2048, 7, 7) to 224",
        {
            "expanded": lambda: gradcam_fast.cam(activations, expanded, 224),
            "written out": lambda: gradcam_fast.cam(activations, gradients, 224),
        },
        ("expanded/written out",),
        seconds=3,
    )
    assert ratios["expanded/written out"] <= 1.1


def test_the_op_takes_no_more_instructions_than_it_did():
    if reason := instructions.missing_requirement():
        pytest.skip(reason)
    baseline = json.loads(instructions.BASELINES.read_text(encoding="utf-8")).get(instructions.compiler_and_machine())
    if baseline is None:
        store = "python benchmarks/instructions.py --store"
        pytest.skip(f"no baseline for {instructions.compiler_and_machine()}; to store one, run: {store}")
    counts = instructions.count_instructions()
    changed = {
        name: f"{baseline[name]} before, {count} now"
        for name, count in counts.items()
        if abs(count / baseline[name] - 1) > SAME_COUNT
    }
    assert not changed, f"{changed}; if this is intended, run: python benchmarks/instructions.py --store"
