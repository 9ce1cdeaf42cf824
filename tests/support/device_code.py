"""Runs the CUDA kernel's device code without a GPU: compiled for the host, or as PTX in the interpreter.

Both take the arguments of `gradcam_fast.cam`, and how the launch is split: the blocks per map, the channels per stage,
whether the map is spilled to global memory, and the order of the threads.
"""

import re

import numpy as np
import torch
from ptx_interpreter import GlobalMemory, Launch

from gradcam_fast.ops.arguments import METHODS, NORMALIZATIONS


def on_host(gpu):
    """`cam` on the threads of gpu_on_host.cpp."""

    def cam(
        activations, gradients, size, *, method="gradcam", normalize="minmax", relu=True, blocks=1, spill=False,
        stage_channels=0, backwards=False,
    ):  # fmt: skip
        a, g, grouped, sizes = _describe(activations, gradients, size)
        results = gpu.cam(
            activations.element_size(), activations.dtype == torch.bfloat16, activations.data_ptr(), a,
            grouped.data_ptr(), g, sizes, METHODS.index(method), NORMALIZATIONS.index(normalize), relu, blocks, spill,
            stage_channels, backwards,
        )  # fmt: skip
        return tuple(torch.from_numpy(values if gradients.dim() == 5 else values[:, 0]) for values in results)

    return cam


def on_ptx(gpu, module):
    """`cam` on the threads of tools/ptx_interpreter; gpu_on_host.cpp lays out the kernel's parameters."""

    def cam(
        activations, gradients, size, *, method="gradcam", normalize="minmax", relu=True, blocks=1, spill=False,
        stage_channels=0, order="together", profile=None,
    ):  # fmt: skip
        a, g, grouped, sizes = _describe(activations, gradients, size)
        maps = sizes[0] * sizes[1]
        memory = GlobalMemory()
        results = [
            memory.make(4 * count, name=name)
            for name, count in (("heatmap", maps * sizes[5] * sizes[6]), ("raw_min", maps), ("raw_max", maps))
        ]
        params, shared_bytes = gpu.kernel_params(
            activations.element_size(), _copy_to(memory, activations, "activations"), a,
            _copy_to(memory, grouped, "gradients"), g, sizes, NORMALIZATIONS.index(normalize), relu, results,
            memory.make(4 * maps * sizes[3] * sizes[4], name="spill") if spill else 0, blocks, stage_channels,
        )  # fmt: skip
        Launch(
            module.kernel(kernel_name(module, method, activations.dtype)), memory, [params], clusters=maps,
            blocks=blocks, shared_bytes=shared_bytes, order=order, profile=profile,
        ).run()  # fmt: skip
        tensors = []
        for address, shape in zip(results, (size, (), ()), strict=True):
            values, written = memory.contents(address, np.float32)
            assert written.all(), "a result was not written"
            tensors.append(torch.from_numpy(values.copy()).view(*gradients.shape[: gradients.dim() - 3], *shape))
        return tuple(tensors)

    return cam


TYPES = {torch.float32: "f", torch.float16: r"\w*?4HalfE", torch.bfloat16: r"\w*?8BFloat16E"}


def kernel_name(module, method, dtype):
    pattern = rf"cam_kernelI\w*?6MethodE{METHODS.index(method)}E{TYPES[dtype]}"
    (name,) = (name for name in module.names if re.search(pattern, name))
    return name


def _describe(activations, gradients, size):
    """(activation strides, gradient strides, gradients with a target axis, sizes); strides of five axes."""
    grouped = gradients if gradients.dim() == 5 else gradients.unsqueeze(1)
    a = activations.stride()
    return (a[0], 0, *a[1:]), grouped.stride(), grouped, (*grouped.shape, *size)


def _copy_to(memory, maps, name):
    """Copy the bytes from the first to the last number of `maps`, aligned as they are; returns the address."""
    count = 1 + sum((length - 1) * step for length, step in zip(maps.shape, maps.stride(), strict=True))
    data = maps.as_strided((count,), (1,)).view(torch.uint8).numpy()
    return memory.add(data.tobytes(), name=name, after=maps.data_ptr() % 256)
