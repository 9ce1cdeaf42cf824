"""Weights of convolutions are packed once, also where the number of images is symbolic."""

from operator import attrgetter

import pytest
import torch
from torch import fx, nn

from gradcam_fast._compiled.prepacking import PackConvolutionWeights

CONVOLUTION = torch.ops.mkldnn._convolution_pointwise.default

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


class Symbolic:
    """A size that is no number yet."""


class Value:
    def __init__(self, *shape):
        self.shape = shape


def convolution(weight, shape, name="weight"):
    """A module that is one convolution of oneDNN with a constant weight, of images of this shape."""
    module = fx.GraphModule(nn.Module(), fx.Graph())
    folder, _, last = name.rpartition(".")
    if folder:
        module.add_module(folder, nn.Module())
    module.get_submodule(folder).register_buffer(last, weight)
    graph = module.graph
    images = graph.placeholder("images")
    images.meta["val"] = Value(*shape)
    constant = graph.get_attr(name)
    constant.meta["val"] = weight
    node = graph.call_function(CONVOLUTION, (images, constant, None, [1, 1], [1, 1], [1, 1], 1, "none", [], ""))
    graph.output(node)
    module.recompile()
    return module


def packed(module):
    PackConvolutionWeights(4)(module.graph)
    module.recompile()
    (node,) = module.graph.find_nodes(op="call_function", target=CONVOLUTION)
    return attrgetter(node.args[1].target)(module)


def test_a_constant_weight_is_packed_and_the_result_stays_the_same():
    weight, images = torch.randn(16, 8, 3, 3), torch.randn(5, 8, 10, 10)
    module = convolution(weight, (Symbolic(), 8, 10, 10))
    assert packed(module).is_mkldnn
    for batch in (1, 4, 5):
        expected = torch.nn.functional.conv2d(images[:batch], weight, padding=1)
        torch.testing.assert_close(module(images[:batch]), expected, rtol=0, atol=1e-4)


def test_the_weight_of_a_module_inside_is_packed():
    # Inductor does not move the weights of convolutions of one position, as of squeeze and excitation.
    weight, vectors = torch.randn(16, 8, 1, 1), torch.randn(3, 8, 1, 1)
    module = convolution(weight, (Symbolic(), 8, 1, 1), "inside.weight")
    graph_before = module(vectors)
    assert packed(module).is_mkldnn
    torch.testing.assert_close(module(vectors), graph_before, rtol=0, atol=1e-5)


def test_sides_that_are_no_numbers_leave_the_weight_as_it_is():
    module = convolution(torch.randn(16, 8, 3, 3), (Symbolic(), 8, Symbolic(), 10))
    assert not packed(module).is_mkldnn


def test_a_weight_that_is_packed_already_stays():
    module = convolution(torch.randn(16, 8, 3, 3), (4, 8, 10, 10))
    first = packed(module)
    assert packed(module) is first
