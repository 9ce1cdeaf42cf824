"""What the target layers return in one forward, and the gradients of the backward that follows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

    from gradcam_fast.features import FeatureMaps

__all__ = ["ActivationsAndGradients"]


class ActivationsAndGradients:
    """Calls a model, and keeps what its target layers return and the gradients that reach that in a later backward.

    The hooks are on the layers during a call only. Each layer's output is handed onward as a copy, so that an in-place
    operation behind it does not change the activations.

    Args:
        model: the model to call.
        target_layers: modules in it.
        reshape_transform: from what a layer returns to (B,C,h,w), or None.
        detach: False keeps activations and gradients on their device, with their graph and as the layer returned them.

    Attributes:
        activations: one for each call of a layer, in the order of the calls; on the CPU and detached.
        gradients: those of the activations, in the same order, once a backward has run.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Iterable[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None = None,
        detach: bool = True,
    ) -> None:
        self.model = model
        self.target_layers = list(target_layers)
        self.reshape_transform = reshape_transform
        self.detach = detach
        self.handles: list[RemovableHandle] = []
        self._activations: list[Any] = []
        # Which layer each gradient is of; None until a backward has run.
        self._layers: list[nn.Module] = []
        self._gradients: list[Any] = []
        self._feature_maps: Sequence[FeatureMaps] | None = None

    def __call__(self, x: Any) -> Any:
        """The model's output."""
        self._forget()
        hooks = [] if self.handles else [layer.register_forward_hook(self._save) for layer in self.target_layers]
        try:
            return self.model(x)
        finally:
            for hook in hooks:
                hook.remove()

    @property
    def activations(self) -> list[Any]:
        if self._feature_maps is not None:
            return [maps.activations.cpu() for maps in self._feature_maps]
        return self._activations

    @activations.setter
    def activations(self, activations: list[Any]) -> None:
        self._activations = activations

    @property
    def gradients(self) -> list[Any]:
        if self._feature_maps is not None:
            return [maps.gradients.cpu() for maps in self._feature_maps if maps.gradients is not None]
        return [gradient for gradient in self._gradients if gradient is not None]

    @gradients.setter
    def gradients(self, gradients: list[Any]) -> None:
        self._gradients = gradients

    @property
    def gradients_of_layers(self) -> dict[nn.Module, Any]:
        """The gradient of each layer's first call that has one."""
        pairs = zip(reversed(self._layers), reversed(self._gradients), strict=True)
        return {layer: gradient for layer, gradient in pairs if gradient is not None}

    @property
    def feature_maps(self) -> Sequence[FeatureMaps] | None:
        """Activations and gradients of each target layer on their device, of an explanation by gradcam_fast."""
        return self._feature_maps

    @feature_maps.setter
    def feature_maps(self, feature_maps: Sequence[FeatureMaps] | None) -> None:
        self._forget()
        self._feature_maps = feature_maps

    def save_activation(self, module: nn.Module, input: Any, output: Any) -> None:
        """Hook: keep what a layer returned."""
        if self.detach:
            planes = output if self.reshape_transform is None else self.reshape_transform(output)
            output = planes.detach().cpu()
        self.activations.append(output)

    def save_gradient(self, module: nn.Module, input: Any, output: Any) -> None:
        """Hook: keep the gradient of what a layer returned, once a backward computes it."""
        if not isinstance(output, torch.Tensor) or not output.requires_grad:
            return
        place = len(self._gradients)
        self._gradients.append(None)
        self._layers.append(module)

        def save(gradient: Tensor) -> None:
            if self.detach:
                planes = gradient if self.reshape_transform is None else self.reshape_transform(gradient)
                gradient = planes.detach().cpu()
            self._gradients[place] = gradient

        output.register_hook(save)

    def release(self) -> None:
        """Let go of activations, gradients and any hooks."""
        self._forget()
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    clear = release

    def _save(self, module: nn.Module, input: Any, output: Any) -> Any:
        self.save_activation(module, input, output)
        self.save_gradient(module, input, output)
        return output.clone() if isinstance(output, torch.Tensor) else None

    def _forget(self) -> None:
        # New lists, because the caller may hold the old ones.
        self._activations, self._layers, self._gradients = [], [], []
        self._feature_maps = None
