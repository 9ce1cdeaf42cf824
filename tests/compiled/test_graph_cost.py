"""What the graphs of known networks cost beyond the prediction: operations and bytes, compared with formulas.

Only the backward behind the layer is added, and of that only what is not zero: no convolution's backward, one row of
the last linear layer for each target, one number per channel behind a global pooling, one token behind a class token.
"""

from collections import Counter

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from gradcam_fast import Explainer
from gradcam_fast._compiled.tracing import trace

BATCH = 2
FLOAT = 4  # bytes
# Per image and target: scores, extremes, validity and reasons, each a few bytes, and what leads to them.
SMALL = 256


@pytest.fixture(scope="module")
def models():
    return pytest.importorskip("torchvision.models", exc_type=Exception)


def traced_graph(model, images, *, topk=None, dynamic_batch=True):
    graph = trace(Explainer(model), images, topk=topk, dynamic_batch=dynamic_batch).graph
    names = Counter(str(node.target) for node in graph.graph.nodes)
    assert not [name for name in names if "convolution_backward" in name]
    assert_nothing_is_computed_twice(graph)
    return graph, names


def assert_nothing_is_computed_twice(graph):
    seen = {}
    for node in graph.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload) and not _is_cheap(node):
            key = node.target, repr(node.args), repr(node.kwargs)
            assert key not in seen, f"{node.format_node()} is {seen[key].format_node()}"
            seen[key] = node


def _is_cheap(node):
    """A view, one number for each image or target, or memory that is not filled."""
    output = node.meta["val"]
    return (
        node.target.is_view
        or "empty" in str(node.target)
        or (isinstance(output, torch.Tensor) and output.numel() <= 4 * BATCH)
    )


def added_operations(graph, model, images):
    """Floating-point operations of matrix products, convolutions and attention beyond the prediction's."""
    counts = []
    for function in (graph, model):
        # With gradients on: without, PyTorch's attention takes one operator for all of it, which is not counted.
        with FlopCounterMode(display=False) as counter:
            function(images)
        counts.append(counter.get_total_flops())
    return counts[0] - counts[1]


def added_bytes(graph, model, images):
    """Bytes that operations write beyond the prediction's."""
    with torch.no_grad():
        prediction = make_fx(model, tracing_mode="fake", _allow_non_fake_inputs=True)(images)
    return written_bytes(graph, images) - written_bytes(prediction, images)


def written_bytes(graph, images):
    class Counted(torch.fx.Interpreter):
        total = 0

        def run_node(self, node):
            result = super().run_node(node)
            if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
                outputs = result if isinstance(result, (tuple, list)) else [result]
                inputs = {
                    argument.untyped_storage().data_ptr()
                    for argument in (*self.fetch_args_kwargs_from_env(node)[0],)
                    if isinstance(argument, torch.Tensor)
                }
                for output in outputs:
                    if isinstance(output, torch.Tensor) and output.untyped_storage().data_ptr() not in inputs:
                        self.total += output.untyped_storage().nbytes()
            return result

    counted = Counted(graph)
    with torch.no_grad():
        counted.run(images)
    return counted.total


@pytest.mark.parametrize("topk", [None, 3])
def test_resnet18_adds_rows_of_the_last_layer_and_the_heatmaps(models, topk):
    model, images = models.resnet18().eval(), torch.randn(BATCH, 3, 96, 96)
    graph, _ = traced_graph(model, images, topk=topk)
    assert added_operations(graph, model, images) == 0
    maps = BATCH * (topk or 1)
    # Twice: those of images that are not finite are replaced by zeros.
    heatmaps = maps * (2 * 96 * 96 + 3 * 3) * FLOAT
    # Handed onward in case the model works in place; the compiler leaves the copy out.
    copied_activations = BATCH * 512 * 3 * 3 * FLOAT
    # As they are, divided by the number of positions, and perhaps in another order.
    rows = maps * 4 * 512 * FLOAT
    added = added_bytes(graph, model, images)
    assert heatmaps < added <= heatmaps + copied_activations + rows + maps * SMALL


@pytest.mark.slow
def test_vgg16_adds_the_backward_of_two_linear_layers(vgg):
    images = torch.randn(BATCH, 3, 64, 64)
    graph, names = traced_graph(vgg, images)
    assert added_operations(graph, vgg, images) == 2 * BATCH * (4096 * 4096 + 4096 * 25088)
    # For a few images, known when it is traced, an operator skips the rows of hidden units that are zero.
    _, fixed = traced_graph(vgg, images, dynamic_batch=False)
    assert fixed["gradcam_fast.skinny_mm.default"] == 2 and not names["gradcam_fast.skinny_mm.default"]


@pytest.mark.slow
@pytest.mark.parametrize("dynamic_batch", [True, False])
def test_vit_adds_the_backward_of_one_token(models, dynamic_batch):
    model = models.vit_b_16().eval()
    torch.nn.init.normal_(model.heads.head.weight, std=0.02)
    images = torch.randn(BATCH, 3, 224, 224)
    graph, _ = traced_graph(model, images, dynamic_batch=dynamic_batch)
    width, hidden, tokens, heads = 768, 3072, 197, 12
    mlp = 2 * hidden * width
    projections = 4 * width * width
    attention = 3 * tokens * width
    spread_to_keys_and_values = 2 * heads * tokens * width
    bound = 2 * BATCH * (mlp + projections + attention + spread_to_keys_and_values)
    added = added_operations(graph, model, images)
    assert 2 * BATCH * mlp < added <= bound
    # The gradient of all tokens, (B,197,768), for the norm's output; and no second one of hidden or attention units.
    assert added_bytes(graph, model, images) < 24 * BATCH * tokens * width * FLOAT
