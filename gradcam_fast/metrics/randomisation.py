"""Randomisation of the weights: whether heatmaps depend on what the model has learnt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
        seed: of the new weights. The values of each parameter are shuffled, so that their distribution is the trained
            one's, and activations keep their scale; constant parameters stay as they are.

    Returns:
        Randomisation: NaN where a heatmap is flat or not finite. The model's weights are as before to the bit, also
        when an explanation fails or is interrupted.

    Raises:
        TypeError, ValueError: an argument that cannot work, such as a layer without weights.
        ImportError: SciPy or scikit-image is not installed.

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
    originals = _on_host(trained.heatmap)
    comparisons = []
    for heatmap in _randomised_heatmaps(at_layer, images, classes, [modules[name] for name in names], cascading, seed):
        comparisons.append([_compare(*maps) for maps in zip(originals, _on_host(heatmap), strict=True)])
    results = torch.tensor(comparisons, dtype=torch.float32, device="cpu").reshape(len(names), *trained.valid.shape, 2)
    rank_correlation, ssim = results.to(trained.heatmap.device).unbind(-1)
    return Randomisation(tuple(names), rank_correlation, ssim)


def _layers_with_weights(model: nn.Module) -> list[str]:
    """The names of the modules that have parameters of their own, last first."""
    return [name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))][::-1]


def _randomised_heatmaps(
    explainer: Explainer, images: Images, target: Target, modules: Sequence[nn.Module], cascading: bool, seed: int
) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    with ExitStack() as stack:
        for module in modules:
            if not cascading:
                stack.close()
            stack.enter_context(_weights_kept(module))
            _shuffle(module, generator)
            yield explainer(images, target).heatmap


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
def _shuffle(module: nn.Module, generator: torch.Generator) -> None:
    for parameter in module.parameters():
        order = torch.randperm(parameter.numel(), generator=generator, device="cpu").to(parameter.device)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))


def _on_host(heatmap: Tensor) -> list[NDArray[Any]]:
    return list(heatmap.reshape(-1, *heatmap.shape[-2:]).cpu().numpy())


def _compare(trained: NDArray[Any], randomised: NDArray[Any]) -> tuple[float, float]:
    """Spearman's rank correlation and the structural similarity of two maps in [0,1]."""
    try:
        from scipy.stats import spearmanr
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise ImportError(
            f"heatmaps are compared with SciPy and scikit-image, and {error.name} is not installed; run pip install "
            "'gradcam-fast[metrics]'"
        ) from error
    if not all(map.max() > map.min() for map in (trained, randomised)):  # also False for NaN
        return float("nan"), float("nan")
    # The window of 7 pixels is scikit-image's; a smaller map takes the largest odd window that fits.
    window = min(7, (min(trained.shape) - 1) // 2 * 2 + 1)
    similarity = structural_similarity(trained, randomised, data_range=1.0, win_size=window)
    return float(spearmanr(trained.ravel(), randomised.ravel()).statistic), float(similarity)
