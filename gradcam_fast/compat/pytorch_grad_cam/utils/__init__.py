"""Pictures, targets, reshapes of tokens, and searches for layers."""

from . import model_targets, reshape_transforms
from .image import deprocess_image
from .svd_on_activations import get_2d_projection

__all__ = ["deprocess_image", "get_2d_projection", "model_targets", "reshape_transforms"]
