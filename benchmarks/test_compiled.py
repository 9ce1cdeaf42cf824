"""The cost of a compiled explanation beside the compiled prediction, and beside both of them eager.

    python -m pytest benchmarks/test_compiled.py -q --benchmark-disable-gc \
        --benchmark-json=benchmarks/results/compiled.json

Seven networks with random weights, 224x224, all contenders in interleaved rounds of one process; `-k resnet18` runs one
network, and results/compiled-*.json of several runs make one table. Compiling takes most of the time: set
TORCHINDUCTOR_CACHE_DIR to a folder that stays, and the second run starts sooner.

The prediction is compiled with the same options (inductor, freezing) as a user does it, by torch.compile; of one image
also as the explanation is: traced into one graph that is called without torch.compile's guards.
"""

import copy

import pytest
import torch
from contenders import NETWORKS, build, predict
from torch._inductor import config
from torch.fx.experimental.proxy_tensor import make_fx

import gradcam_fast

SIDE = 224
BATCHES = (1, 8)
SECONDS = {1: 8, 8: 16}
POOLING_AND_LINEAR = ("resnet18", "resnet50", "efficientnet_b0")
TABLE = "a compiled explanation beside the compiled prediction"


def photos(batch):
    return torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(batch))


@pytest.fixture
def freezing():
    # As an option of torch.compile it comes too late: the weights are inputs of the graph by then.
    with config.patch(freezing=True), torch.no_grad():
        torch._dynamo.reset()
        yield


def compiled_prediction(model, images):
    compiled = torch.compile(model, dynamic=False)
    compiled(images)
    return compiled


def traced_prediction(model, images):
    return torch._inductor.compile(make_fx(model)(images), [images])


def check_accuracy(explainer, images, explanation, **asked):
    """Refuse a compiled explanation whose maps are further from float64's than the eager ones, beyond rounding.

    On random weights of these deep networks rounding moves a map by up to 1e-4: eagerly, too, between two layouts.
    """
    expected = explainer(images, **asked)
    exact = gradcam_fast.explain(
        copy.deepcopy(explainer.model).double(), images[:1].double(), layer=expected.layer, target=expected.target[:1]
    )
    eager_error, error = ((result.heatmap[:1] - exact.heatmap).abs().max() for result in (expected, explanation))
    assert torch.equal(explanation.target, expected.target) and error <= 2 * eager_error + 2e-5
    return {
        "largest difference to eager maps": float((explanation.heatmap - expected.heatmap).abs().max()),
        "error of the first image's map, compiled and eager": [float(error), float(eager_error)],
    }


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_compiled_explanation_beside_the_compiled_prediction(compare, freezing, name, batch):
    model, images = build(name).requires_grad_(False), photos(batch)
    eager, explainer = predict(model), gradcam_fast.Explainer(model)
    compiled = explainer.compile(images, dynamic_batch=False)
    facts = check_accuracy(explainer, images, compiled(images))
    prediction = compiled_prediction(model, images)
    contenders = {
        "compiled explanation": lambda: compiled(images),
        "compiled prediction": lambda: prediction(images),
        "explanation": lambda: explainer(images),
        "prediction": lambda: eager(images),
    }
    pairs = [
        "compiled explanation/compiled prediction",
        "compiled explanation/prediction",
        "explanation/prediction",
    ]
    if batch == 1:  # where the guards weigh most
        traced = traced_prediction(model, images)
        contenders["traced prediction"] = lambda: traced(images)
        pairs.append("compiled explanation/traced prediction")
    if name in POOLING_AND_LINEAR:
        ten = explainer.compile(images, topk=10, dynamic_batch=False)
        check_accuracy(explainer, images, ten(images, topk=10), topk=10)
        contenders["ten targets"] = lambda: ten(images, topk=10)
        pairs.append("ten targets/compiled prediction")
    compare(TABLE, f"{NETWORKS[name][0]}, B = {batch}", contenders, pairs, seconds=SECONDS[batch], facts=facts)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_one_graph_for_all_batches_beside_one_for_each(compare, freezing, name):
    model, images = build(name).requires_grad_(False), photos(8)
    explainer = gradcam_fast.Explainer(model)
    every, fixed = explainer.compile(photos(4)), explainer.compile(images, dynamic_batch=False)
    check_accuracy(explainer, images, every(images))
    compare(
        "one graph for all batches",
        f"{NETWORKS[name][0]}, B = 8",
        {"any batch": lambda: every(images), "this batch": lambda: fixed(images)},
        ("any batch/this batch",),
        seconds=10,
    )


@pytest.mark.skipif(not hasattr(gradcam_fast, "export"), reason="explanations cannot be exported yet")
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_package_beside_the_compiled_explanation(compare, freezing, tmp_path, name, batch):
    model, images = build(name).requires_grad_(False), photos(batch)
    eager, explainer = predict(model), gradcam_fast.Explainer(model)
    compiled = explainer.compile(images, dynamic_batch=False)
    packages = {}
    for kind, batches in (("fixed", (batch, batch)), ("dynamic", (1, 64))):
        path = gradcam_fast.export(explainer, images, tmp_path / f"{kind}.pt2", batch=batches)
        packages[kind] = gradcam_fast.load(path)
        check_accuracy(explainer, images, packages[kind](images))
    compare(
        "a package beside the compiled explanation",
        f"{NETWORKS[name][0]}, B = {batch}",
        {
            "fixed": lambda: packages["fixed"](images),
            "dynamic": lambda: packages["dynamic"](images),
            "compiled explanation": lambda: compiled(images),
            "prediction": lambda: eager(images),
        },
        ("fixed/compiled explanation", "dynamic/compiled explanation", "dynamic/prediction"),
        seconds=SECONDS[batch],
    )
