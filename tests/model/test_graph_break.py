"""Code under `torch.compile` may explain: the graph breaks there, and `fullgraph=True` says what to do instead."""

import subprocess
import sys

import pytest
import torch
from support.networks import stateless

from gradcam_fast import Explainer, explain

MODEL = stateless()
FOUND, NAMED = Explainer(MODEL), Explainer(MODEL, layer="features.1")

FUNCTIONS = {
    "named layer": lambda images: explain(MODEL, images, layer="features").heatmap + 1,
    "found layer": lambda images: explain(MODEL, images * 2).heatmap,
    "explainer": lambda images: FOUND(images, topk=2).heatmap.amax(1),
    "explainer of a layer": lambda images: NAMED(images, target=3).logits.softmax(1),
    "explainer made inside": lambda images: Explainer(MODEL, layer="features.1")(images).heatmap.mean((1, 2)),
}


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_an_explanation_runs_in_compiled_code(function, mode, images):
    with mode():
        compiled = torch.compile(function, backend="eager")(images)
        assert torch.equal(compiled, function(images))


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_one_graph_without_breaks_is_refused_with_the_way_out(function, images):
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"fullgraph=True.*Explainer\(model\)\.compile\(images\)"):
        torch.compile(function, backend="eager", fullgraph=True)(images)


def test_importing_and_explaining_does_not_import_the_compiler():
    program = (
        "import sys, torch, gradcam_fast;"
        "model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 2));"
        "gradcam_fast.explain(model, torch.rand(1, 3, 8, 8));"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
