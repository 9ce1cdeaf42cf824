"""A graph pass for inductor: packs the weights of convolutions once, where the number of images is symbolic.

When inductor freezes a graph, it packs weights into oneDNN's layout, but only where all sizes are numbers. Otherwise
every call packs them again, which takes a quarter of the time of ResNet-18 with one image. The layout depends little on
the number of images; where it does, oneDNN packs the weight again in the call, so the results are the same.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

if TYPE_CHECKING:
    from torch import fx

__all__ = ["PackConvolutionWeights"]


class PackConvolutionWeights(CustomGraphPass):
    """Packs the constant weights of oneDNN's convolutions; give it to inductor as ``post_grad_custom_pre_pass``.

    Args:
        batch: the number of images that the layout is made for.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def __call__(self, graph: fx.Graph) -> None:
        """Replace weights by packed ones. Inductor's own passes run afterwards, and fuse what follows a convolution."""
        module = graph.owning_module
        assert module is not None
        packed_names: dict[tuple[object, ...], str] = {}
        for node in graph.find_nodes(op="call_function", target=torch.ops.mkldnn._convolution_pointwise.default):
            images, weight, _, padding, stride, dilation, groups, *_ = node.args
            if weight.op != "get_attr":
                continue
            # Of a convolution of one position, a pooled vector, inductor leaves the weight in the module it came in.
            tensor = attrgetter(weight.target)(module)
            if not isinstance(tensor, torch.Tensor) or tensor.is_mkldnn:
                continue
            batch, *sides = images.meta["val"].shape
            if not all(isinstance(side, int) for side in sides):
                continue
            shape = [batch if isinstance(batch, int) else self.batch, *sides]
            key = (weight.target, *map(tuple, (padding, stride, dilation)), groups, *shape)
            if key not in packed_names:
                packed_names[key] = f"{weight.target.replace('.', '_')}_packed_{len(packed_names)}"
                packed = torch.ops.mkldnn._reorder_convolution_weight(tensor, padding, stride, dilation, groups, shape)
                module.register_buffer(packed_names[key], packed)
            with graph.inserting_before(node):
                replacement = graph.get_attr(packed_names[key])
            replacement.meta.update(weight.meta)
            node.update_arg(1, replacement)
        graph.eliminate_dead_code()

    def uuid(self) -> object:
        """What inductor's cache tells graphs with and without this pass apart by."""
        return get_hash_for_files((__file__,), extra=str(self.batch))
