"""RefineCAM (arXiv 2605.14641): the product of the maps of several layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .grad_cam_plusplus import GradCAMPlusPlus
from .utils.image import scale_cam_image

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from .base_cam import BaseCAM

__all__ = ["RefineCAM"]


class RefineCAM:
    """The product of another method's maps of each layer, scaled to [0,1].

    Args:
        model, target_layers, reshape_transform: as in :class:`BaseCAM`.
        base_method: the class that makes the maps; it gets all other arguments.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None = None,
        base_method: type[BaseCAM] = GradCAMPlusPlus,
        **choices: Any,
    ) -> None:
        self.base_cam_per_layer = [base_method(model, [layer], reshape_transform, **choices) for layer in target_layers]

    def __call__(self, *args: Any, **choices: Any) -> NDArray[np.float32]:
        return self.forward(*args, **choices)

    def forward(
        self, input_tensor: Tensor, targets: Sequence[Any] | None = None, eigen_smooth: bool = False
    ) -> NDArray[np.float32]:
        """Maps (B,H,W) as :class:`BaseCAM` returns them."""
        maps = [base(input_tensor, targets, eigen_smooth=eigen_smooth) for base in self.base_cam_per_layer]
        return scale_cam_image(np.prod(maps, axis=0))
