"""Randomisation of the weights: whether heatmaps depend on what the model has learnt."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..explainer import Explainer
from ..explanation import Explanation
from .subject import layer_names

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from ..types import Images, Target

__all__ = ["Randomisation", "randomisation"]


@dataclass(frozen=True, eq=False)
class Randomisation:
    """How alike the heatmaps of a model and of the model with random weights are.

    Attributes:
        layers: L names, in the order in which their weights were drawn anew, last layer first.
        rank_correlation: (L,B) or (L,B,K), Spearman's, in [-1,1]; lower is better.
        ssim: (L,B) or (L,B,K), structural similarity, in [-1,1]; lower is better.
    """

    layers: tuple[str, ...]
    rank_correlation: Tensor
    ssim: Tensor


def randomisation(
    explainer: Explainer,
    images: Images,
    target: Target = None,
    *,
    explanation: Explanation | None = None,
    layers: Sequence[str] | None = None,
    cascading: bool = True,
    seed: int = 0,
) -> Randomisation:
    """Draw the weights of the model's layers anew, from the last to the first, and compare the heatmaps.

    Adebayo et al. 2018, "Sanity checks for saliency maps", section 3: a heatmap that stays the same does not show what
    the model has learnt. ``cascading`` keeps the layers behind random (3.1), otherwise one layer at a time is
    random (3.2). The class explained is that of the trained model. Cost: one explanation for each layer.

    Args:
        explainer: its layer is the one that the first explanation finds, unless it names one.
        images, target: as for :func:`gradcam_fast.explain`.
        explanation: of these images by this explainer; None makes one.
        layers: dotted names, in the order wanted; None takes all that have weights of their own, last first.
        seed: of the new weights. The values of each parameter are drawn from a normal distribution with the mean and
            standard deviation of the trained ones, so that activations keep their scale.

    Returns:
        Randomisation: NaN where a heatmap is flat or not finite. The model's weights are as before to the bit, also
        when an explanation fails or is interrupted.

    Raises:
        TypeError, ValueError: an argument that cannot work, such as a layer without weights.
        ImportError: scikit-image is not installed.

    Example:
        >>> import torch, gradcam_fast
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        ...     torch.nn.Linear(8, 5))
        >>> explainer = gradcam_fast.Explainer(model)
        >>> result = gradcam_fast.metrics.randomisation(explainer, torch.rand(2, 3, 16, 16))
        >>> result.layers, result.rank_correlation.shape
        (('4', '0'), torch.Size([2, 2]))
    """
    if not isinstance(explainer, Explainer):
        raise TypeError(f"explainer is a {type(explainer).__name__}; give a gradcam_fast.Explainer")
    own = _layers_with_weights(explainer.model)
    names = own if layers is None else list(layers)
    modules = dict(explainer.model.named_modules())
    if unknown := [name for name in names if name not in modules or not any(True for _ in modules[name].parameters())]:
        raise ValueError(f"layer {unknown[0]!r} has no weights in this model; give names such as {', '.join(own[:3])}")
    trained = explainer(images, target) if explanation is None else explanation
    at_layer = explainer.replace(layer=layer_names(trained))
    classes = target if trained.target is None else trained.target
    similarity = _Similarity(trained.heatmap)
    drawn = [modules[name] for name in names]
    # Closed here, because the traceback of a failed comparison would keep the generator, and so the weights, as it is.
    with closing(_randomised_heatmaps(at_layer, images, classes, drawn, cascading, seed)) as heatmaps:
        found = list(_beside(similarity, heatmaps))
    results = torch.tensor(found, dtype=torch.float32, device="cpu").reshape(len(names), 2, *trained.valid.shape)
    rank_correlation, ssim = results.to(trained.heatmap.device).unbind(1)
    return Randomisation(tuple(names), rank_correlation, ssim)


def _layers_with_weights(model: nn.Module) -> list[str]:
    """The names of the modules that have parameters of their own, last first."""
    return [name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))][::-1]


def _randomised_heatmaps(
    explainer: Explainer, images: Images, target: Target, modules: Sequence[nn.Module], cascading: bool, seed: int
) -> Generator[Tensor, None, None]:
    generator = torch.Generator().manual_seed(seed)
    with ExitStack() as stack:
        for module in modules:
            if not cascading:
                stack.close()
            stack.enter_context(_weights_kept(module))
            _redraw(module, generator)
            yield explainer(images, target).heatmap


def _beside(similarity: _Similarity, heatmaps: Iterable[Tensor]) -> Iterator[tuple[list[float], list[float]]]:
    """Compare each layer's heatmaps while the next layer's are made: scikit-image works on one core."""
    with ThreadPoolExecutor(1) as worker:
        comparing = None
        for heatmap in heatmaps:
            if comparing is not None:
                yield comparing.result()
            comparing = worker.submit(similarity, heatmap)
        if comparing is not None:
            yield comparing.result()


@contextmanager
def _weights_kept(module: nn.Module) -> Iterator[None]:
    """Put the module's weights back at the end, whatever happens."""
    kept = [(parameter, parameter.detach().clone()) for parameter in module.parameters()]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, values in kept:
                parameter.copy_(values)


@torch.no_grad()
def _redraw(module: nn.Module, generator: torch.Generator) -> None:
    for parameter in module.parameters():
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float32, device="cpu").to(parameter)
        parameter.copy_(drawn.mul_(parameter.std(correction=0)).add_(parameter.mean()))


class _Similarity:
    """Spearman's rank correlation and the structural similarity of heatmaps with those of the trained model.

    Args:
        heatmap: of the trained model, (B,H,W) or (B,K,H,W) in [0,1]; its ranks are computed once.
    """

    def __init__(self, heatmap: Tensor) -> None:
        try:
            from skimage.metrics import structural_similarity
        except ImportError as error:
            raise ImportError(
                f"heatmaps are compared with scikit-image, and {error.name} is not installed; run pip install "
                "'gradcam-fast[metrics]'"
            ) from error
        self._structural_similarity = structural_similarity
        self._trained = _on_host(heatmap)
        self._ranks = self._standard_ranks(self._trained)
        # The window of 7 pixels is scikit-image's; a smaller map takes the largest odd window that fits.
        self._window = min(7, (min(self._trained.shape[1:]) - 1) // 2 * 2 + 1)

    def __call__(self, heatmap: Tensor) -> tuple[list[float], list[float]]:
        """Rank correlation and structural similarity of N maps; NaN where one of two maps is flat or has NaN."""
        import numpy

        maps = _on_host(heatmap)
        ranks = self._standard_ranks(maps)
        rank_correlation = (ranks * self._ranks).sum(1)
        ssim = [
            numpy.nan
            if numpy.isnan(correlation)
            else float(self._structural_similarity(*pair, data_range=1.0, win_size=self._window))
            for correlation, *pair in zip(rank_correlation, self._trained, maps, strict=True)
        ]
        return rank_correlation.tolist(), ssim

    @staticmethod
    def _standard_ranks(maps: NDArray[Any]) -> NDArray[Any]:
        """The ranks (N,H*W) of the pixels, centred and of length 1: their products add up to Spearman's correlation."""
        import numpy

        ranks = numpy.stack([_average_ranks(heat) for heat in maps])
        ranks -= ranks.mean(1, keepdims=True)
        ranks[numpy.isnan(maps).any((1, 2))] = numpy.nan
        with numpy.errstate(invalid="ignore"):  # a flat map has no correlation
            standard: NDArray[Any] = ranks / numpy.linalg.norm(ranks, axis=1, keepdims=True)
        return standard


def _average_ranks(heat: NDArray[Any]) -> NDArray[Any]:
    """The rank of each pixel, flat; pixels of equal heat share the mean of theirs."""
    import numpy

    # Three times as fast as SciPy's `rankdata`, which took a tenth of an explanation.
    _, places, counts = numpy.unique(heat, return_inverse=True, return_counts=True)
    ranks: NDArray[Any] = (numpy.cumsum(counts) - (counts - 1) / 2)[places.ravel()]
    return ranks


def _on_host(heatmap: Tensor) -> NDArray[Any]:
    """The maps as (N,H,W)."""
    maps: NDArray[Any] = heatmap.reshape(-1, *heatmap.shape[-2:]).cpu().numpy()
    return maps
