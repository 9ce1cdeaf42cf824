"""The CUDA kernel's device code where there is no GPU: compiled for the host, or nvcc's PTX of it, interpreted.

Both take what `gradcam_fast.cam` takes, and how many blocks share a map. Knows nothing of what is expected of them.
"""

import re

import numpy as np
import ptx_interpreter as ptx
import torch

from gradcam_fast.ops.arguments import METHODS, NORMALIZATIONS


def on_host(gpu):
    """`cam` by the threads of gpu_on_host.cpp."""

    def cam(
        activations, gradients, size, *, method="gradcam", normalize="minmax", relu=True, blocks=1, spill=False,
        stage_channels=0, backwards=False,
    ):  # fmt: skip
        a, g, grouped, sizes = _described(activations, gradients, size)
        found = gpu.cam(
            activations.element_size(), activations.dtype == torch.bfloat16, activations.data_ptr(), a,
            grouped.data_ptr(), g, sizes, METHODS.index(method), NORMALIZATIONS.index(normalize), relu, blocks, spill,
            stage_channels, backwards,
        )  # fmt: skip
        return tuple(torch.from_numpy(each if gradients.dim() == 5 else each[:, 0]) for each in found)

    return cam


def on_ptx(gpu, module):
    """`cam` by the threads of tools/ptx_interpreter; gpu_on_host.cpp lays out the kernel's argument."""

    def cam(
        activations, gradients, size, *, method="gradcam", normalize="minmax", relu=True, blocks=1, spill=False,
        stage_channels=0, order="together", profile=None,
    ):  # fmt: skip
        a, g, grouped, sizes = _described(activations, gradients, size)
        maps = sizes[0] * sizes[1]
        memory = ptx.GlobalMemory()
        results = [
            memory.make(4 * count, name=name)
            for name, count in (("heatmap", maps * sizes[5] * sizes[6]), ("raw_min", maps), ("raw_max", maps))
        ]
        params, shared_bytes = gpu.kernel_params(
            activations.element_size(), _copied(memory, activations, "activations"), a,
            _copied(memory, grouped, "gradients"), g, sizes, NORMALIZATIONS.index(normalize), relu, results,
            memory.make(4 * maps * sizes[3] * sizes[4], name="spill") if spill else 0, blocks, stage_channels,
        )  # fmt: skip
        ptx.Launch(
            module.kernel(kernel_name(module, method, activations.dtype)), memory, [params], clusters=maps,
            blocks=blocks, shared_bytes=shared_bytes, order=order, profile=profile,
        ).run()  # fmt: skip
        found = []
        for address, shape in zip(results, (size, (), ()), strict=True):
            numbers, written = memory.contents(address, np.float32)
            assert written.all(), "a result was not written"
            found.append(torch.from_numpy(numbers.copy()).view(*gradients.shape[: gradients.dim() - 3], *shape))
        return tuple(found)

    return cam


TYPES = {torch.float32: "f", torch.float16: r"\w*?4HalfE", torch.bfloat16: r"\w*?8BFloat16E"}


def kernel_name(module, method, dtype):
    pattern = rf"cam_kernelI\w*?6MethodE{METHODS.index(method)}E{TYPES[dtype]}"
    (name,) = (each for each in module.names if re.search(pattern, each))
    return name


def _described(activations, gradients, size):
    """Strides (image, target, channel, row, column) of both; gradients with targets; all sizes."""
    grouped = gradients if gradients.dim() == 5 else gradients.unsqueeze(1)
    a = activations.stride()
    return (a[0], 0, *a[1:]), grouped.stride(), grouped, (*grouped.shape, *size)


def _copied(memory, maps, name):
    """A copy of the bytes from the first number of `maps` to the last, as far from an aligned address as they are."""
    reach = 1 + sum((many - 1) * step for many, step in zip(maps.shape, maps.stride(), strict=True))
    numbers = maps.as_strided((reach,), (1,)).view(torch.uint8).numpy()
    return memory.add(numbers.tobytes(), name=name, after=maps.data_ptr() % 256)
