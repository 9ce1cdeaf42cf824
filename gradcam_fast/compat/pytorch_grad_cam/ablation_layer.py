"""Names of the layers with which pytorch-grad-cam ablates; nothing is put into the model here."""

from __future__ import annotations

from torch import nn

__all__ = ["AblationLayer", "AblationLayerFasterRCNN", "AblationLayerVit"]


class AblationLayer(nn.Module):
    """Accepted by :class:`AblationCAM`, which finds out by itself what the target layer returns."""


class AblationLayerVit(AblationLayer):
    """For layers that return tokens."""


class AblationLayerFasterRCNN(AblationLayer):
    """For feature pyramids."""
