"""Deep feature factorisation (Collins et al., ECCV 2018): concepts in the activations, and where they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..activations_and_gradients import ActivationsAndGradients
from ..extras import import_extra
from ..utils.image import create_labels_legend, scale_cam_image, show_factorization_on_image

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["DeepFeatureFactorization", "dff", "run_dff_on_image"]


def dff(activations: NDArray[Any], n_components: int = 5) -> tuple[NDArray[Any], NDArray[Any]]:
    """Factorise activations (B,C,h,w): concepts (C,n), and how much of each there is at each position, (B,n,h,w).

    By non-negative matrix factorisation (scikit-learn) of the activations less each channel's minimum.
    """
    batch, channels, *grid = activations.shape
    values = np.nan_to_num(activations, posinf=np.inf, neginf=-np.inf).swapaxes(0, 1).reshape(channels, -1)
    lowest = values.min(axis=1, keepdims=True)
    factorisation = import_extra("sklearn.decomposition", "NMF")(
        n_components=n_components, init="random", random_state=0
    )
    concepts = factorisation.fit_transform(values - lowest) + lowest
    return concepts, factorisation.components_.reshape(n_components, batch, *grid).swapaxes(0, 1)


class DeepFeatureFactorization:
    """Factorises what a layer returns for a batch; call it with the batch.

    Args:
        model: any module.
        target_layer: a module in it.
        reshape_transform: from what the layer returns to (B,C,h,w).
        computation_on_concepts: from concepts (n,C) to scores of classes, such as the model's last linear layer.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layer: nn.Module,
        reshape_transform: Callable[[Any], Tensor] | None = None,
        computation_on_concepts: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.model = model
        self.computation_on_concepts = computation_on_concepts
        self.activations_and_grads = ActivationsAndGradients(model, [target_layer], reshape_transform)

    @torch.no_grad()
    def __call__(self, input_tensor: Tensor, n_components: int = 16) -> tuple[Any, ...]:
        """Concepts (C,n), for each image maps (n,H,W) in [0,1], and the concepts' scores if they were asked for."""
        height, width = input_tensor.shape[-2:]
        self.activations_and_grads(input_tensor)
        concepts, amounts = dff(self.activations_and_grads.activations[0].numpy(), n_components)
        maps = [scale_cam_image(of_image, (width, height)) for of_image in amounts]
        if self.computation_on_concepts is None:
            return concepts, maps
        return concepts, maps, self.computation_on_concepts(torch.from_numpy(np.float32(concepts.T))).cpu().numpy()

    def __enter__(self) -> DeepFeatureFactorization:
        return self

    def __exit__(self, *_: object) -> None:
        self.activations_and_grads.release()

    def __del__(self) -> None:
        if "activations_and_grads" in vars(self):
            self.activations_and_grads.release()


def run_dff_on_image(
    model: nn.Module,
    target_layer: nn.Module,
    classifier: Callable[[Tensor], Tensor],
    img_pil: Any,
    img_tensor: Tensor,
    reshape_transform: Callable[[Any], Tensor] | None = None,
    n_components: int = 5,
    top_k: int = 2,
) -> NDArray[np.uint8]:
    """A picture of an image, its concepts in colours, and their classes by name (``model.config.id2label``).

    Args:
        model, target_layer, reshape_transform: as in :class:`DeepFeatureFactorization`.
        classifier: its ``computation_on_concepts``.
        img_pil, img_tensor: the image, and the same as the model takes it, (3,H,W).
        n_components, top_k: the number of concepts, and of the classes named for each.
    """
    pixels = np.array(img_pil)
    factorise = DeepFeatureFactorization(model, target_layer, reshape_transform, classifier)
    _, maps, scores = factorise(img_tensor[None], n_components)
    probabilities = torch.from_numpy(scores).softmax(-1).numpy()
    labels = create_labels_legend(probabilities, model.config.id2label, top_k)  # type: ignore[union-attr,arg-type]
    colored = show_factorization_on_image(pixels / 255, maps[0], image_weight=0.3, concept_labels=labels)
    return np.hstack((pixels, colored))
