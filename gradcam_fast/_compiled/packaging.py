"""Writes a package: compiles a traced explanation ahead of time, tries it, and puts the file in its place."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..exceptions import CannotCompile
from ..ops import reference
from ..ops.arguments import METHODS, NORMALIZATIONS
from .inductor import errors_of_inductor, read_any_strides
from .layer_maps import add_layer_maps
from .package_info import PackageInfo
from .prepacking import PackConvolutionWeights
from .record import as_native_input

if TYPE_CHECKING:
    from torch import Tensor

    from ..explanation import Explanation
    from .tracing import TracedExplanation

__all__ = ["write_package"]


def write_package(traced: TracedExplanation, info: PackageInfo, path: Path) -> None:
    """Compile a traced explanation and write it to ``path``, with the table of ``info``.

    Args:
        info: its ``batch`` is the range that the package takes; ``layer_size`` and ``self_contained`` are set here.

    Raises:
        CannotCompile: inductor failed, or what it made does not give the results of the traced explanation.
    """
    layer_size = add_layer_maps(traced.graph)
    program = _export(traced, info.batch)
    if info.self_contained:
        program = program.run_decompositions(_REFERENCE_OF_OPERATORS)
    info = replace(info, layer_size=layer_size, self_contained=not _has_own_operators(program))
    options = _inductor_options(info)
    with _temporary_file_beside(path) as file:
        # Inductor freezes, which folds and packs the weights, only where no gradient can be asked for.
        with errors_of_inductor(), torch.no_grad(), _without_advice_on_cuda():
            read_any_strides()
            torch._inductor.aoti_compile_and_package(program, package_path=str(file), inductor_configs=options)
        _try(file, traced, info)
        os.replace(file, path)


@contextmanager
def _without_advice_on_cuda() -> Iterator[None]:
    """On machines without a CUDA device, inductor's import warns that there is none, whatever it is to compile for."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class _Flat(nn.Module):
    def __init__(self, traced: nn.Module) -> None:
        super().__init__()
        self.traced = traced

    def forward(self, *tensors: Tensor) -> Any:
        return self.traced(*tensors)


def _export(traced: TracedExplanation, batch: tuple[int, int]) -> torch.export.ExportedProgram:
    low, high = batch
    sizes: dict[int, Any] = {} if low == high else {0: torch.export.Dim("batch", min=low, max=high)}
    shapes = tuple(sizes if tensor.of_batch else {} for tensor in traced.record.inputs)
    return torch.export.export(_Flat(traced.graph), traced.examples, dynamic_shapes={"tensors": shapes})


def _cam(
    activations: Tensor, gradients: Tensor, height: int, width: int, method: int, normalize: int, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    choices: dict[str, Any] = {"method": METHODS[method], "normalize": NORMALIZATIONS[normalize], "relu": relu}
    return reference.cam(activations, gradients, (height, width), **choices)


_OPERATORS = {"cam": _cam, "skinny_mm": torch.mm}
_REFERENCE_OF_OPERATORS: dict[Any, Any] = {
    getattr(torch.ops.gradcam_fast, name).default: function
    for name, function in _OPERATORS.items()
    if hasattr(torch.ops.gradcam_fast, name)
}


def _has_own_operators(program: torch.export.ExportedProgram) -> bool:
    return any(
        isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "gradcam_fast"
        for node in program.graph.nodes
    )


def _inductor_options(info: PackageInfo) -> dict[str, Any]:
    low, high = info.batch
    options: dict[str, Any] = {"freezing": True, "aot_inductor.metadata": info.to_texts()}
    if low == 1 and hasattr(torch._inductor.config.aot_inductor, "check_lowerbound"):
        # PyTorch's symbolic sizes begin at 2, and programs that ask for checks would be refused a single image.
        options["aot_inductor.check_lowerbound"] = False
    if info.images.device.type == "cpu":
        if low != high:
            options["post_grad_custom_pre_pass"] = PackConvolutionWeights(low)
        if level := _X86_LEVELS.get(info.instruction_set):
            # Inductor's default is the very processor of this machine; a level runs on every processor that has it.
            options["cpp.march"] = level
    return options


_X86_LEVELS = {"AVX2": "x86-64-v3", "AVX512": "x86-64-v4"}


@contextmanager
def _temporary_file_beside(path: Path) -> Iterator[Path]:
    """A file name in the folder of ``path``; whatever is there at the end is removed."""
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}.", dir=path.parent) as folder:
        # The name of the file is also that of the archive's top folder.
        yield Path(folder, path.name)


def _try(file: Path, traced: TracedExplanation, info: PackageInfo) -> None:
    """Run the package with the fewest images, and with as many as the example has; random ones.

    Raises:
        CannotCompile: logits or heatmaps differ from those of the traced explanation.
    """
    loader = torch._C._aoti.AOTIModelPackageLoader(str(file), "model", False, 1, -1)
    record = traced.record
    low, _ = info.batch
    generator = torch.Generator().manual_seed(0)
    examples = [
        torch.randn(example.shape, generator=generator).to(example) if example.dtype.is_floating_point else example
        for example in traced.examples
    ]
    for count in sorted({low, len(next(compress(examples, (spec.of_batch for spec in record.inputs))))}):
        tensors = [
            as_native_input(example[:count] if spec.of_batch else example, spec)
            for example, spec in zip(examples, record.inputs, strict=True)
        ]
        with torch.no_grad():
            expected = record.explanation(traced.graph(*tensors)[: record.output_count])
            received = record.explanation(loader.boxed_run(list(tensors))[: record.output_count])
        if not (_agree(received.score, expected.score) and _heatmaps_agree(received, expected)):
            raise CannotCompile(
                f"the compiled explanation of {count} images is not that of the model, so no package was written; this "
                "is a fault of torch's compiler: please report it with the model"
            )


def _agree(received: Tensor, expected: Tensor) -> bool:
    tolerance = 1e-3 if expected.dtype in (torch.float32, torch.float64) else 5e-2
    allowed = tolerance * max(1.0, float(expected.abs().nan_to_num().max()))
    return received.shape == expected.shape and torch.allclose(received, expected, rtol=0, atol=allowed, equal_nan=True)


def _heatmaps_agree(received: Explanation, expected: Explanation) -> bool:
    """Whether the heatmaps agree on average; single pixels may differ much where a map is nearly flat."""
    if received.heatmap.shape != expected.heatmap.shape:
        return False
    comparable = received.valid & expected.valid
    if expected.target is not None and received.target is not None:
        comparable &= received.target == expected.target
    pixels = tuple(range(comparable.dim(), expected.heatmap.dim()))
    difference = (received.heatmap - expected.heatmap).abs().mean(pixels)
    return bool((difference <= 0.02 * expected.heatmap.abs().amax(pixels))[comparable].all())
