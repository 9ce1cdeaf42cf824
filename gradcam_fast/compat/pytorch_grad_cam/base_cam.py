"""The base class of all methods: from a batch and targets to maps as numpy arrays, by one forward of gradcam_fast."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import nn

from gradcam_fast import cam
from gradcam_fast.exceptions import NotSpatial
from gradcam_fast.features import feature_maps

from .activations_and_gradients import ActivationsAndGradients
from .augmentations import FLIPS_AND_SCALES
from .targets_of_batch import check_targets, highest_logits, scores_of_batch
from .utils.image import scale_cam_image
from .utils.svd_on_activations import get_2d_projection

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Targets = Sequence[Any] | Callable[[Any], Sequence[Any]] | None

__all__ = ["BaseCAM", "fused"]

_Class = TypeVar("_Class", bound="type[BaseCAM]")

# Methods that gradcam_fast.cam computes, by the functions that compute them here. A class that overrides one of these
# functions has another pair.
_FUSED: dict[tuple[Any, Any], str] = {}


def fused(method: str) -> Callable[[_Class], _Class]:
    """Class decorator: the class's weights and map are those of this method of ``gradcam_fast.cam``."""

    def register(cls: _Class) -> _Class:
        _FUSED[cls.get_cam_weights, cls.get_cam_image] = method
        return cls

    return register


class BaseCAM:
    """Maps of a model's target layers; call it with a batch and one target for each image.

    A subclass gives ``get_cam_weights`` (weights of the channels) or ``get_cam_image`` (the map), with numpy arrays in
    and out. Where it gives neither and is one of gradcam_fast's methods, the map is computed on the device.

    Args:
        model: is put into eval mode.
        target_layers: modules of the model; the result is the mean of their maps, each scaled to [0,1].
        reshape_transform: from what a layer returns to (B,C,h,w). None also reads tokens and channels-last maps.
        compute_input_gradient: whether ``input_tensor.grad`` is needed in ``compute_cam_per_layer``.
        uses_gradients: False runs the model without a graph.
        tta_transforms: for ``aug_smooth``: objects with ``augment_image`` and ``deaugment_mask``, such as those of
            ttach; None flips and scales in six variants.
        detach: False hands tensors with their graph to ``get_cam_weights``.
        use_cuda: as in old releases; True moves the model to the GPU.

    Raises:
        TypeError: ``target_layers`` are no modules, or ``reshape_transform`` is no function.

    Attributes:
        outputs: what the model returned in the last call, detached.
        activations_and_grads: activations and gradients of the last call.
    """

    # Whether the map depends on the targets.
    uses_targets = True

    def __init__(
        self,
        model: nn.Module,
        target_layers: Iterable[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None = None,
        compute_input_gradient: bool = False,
        uses_gradients: bool = True,
        tta_transforms: Iterable[Any] | None = None,
        detach: bool = True,
        *,
        use_cuda: bool = False,
    ) -> None:
        if use_cuda:
            model = model.cuda()
        if _trains(model):
            model.eval()
        self.model = model
        self.target_layers = _modules(target_layers)
        if not (reshape_transform is None or callable(reshape_transform)):
            raise TypeError(
                f"reshape_transform={reshape_transform!r} is a {type(reshape_transform).__name__}; give a function, or "
                "name the arguments that follow (the third one was use_cuda before release 1.5)"
            )
        self.device = _device(model)
        self.reshape_transform = reshape_transform
        self.compute_input_gradient = compute_input_gradient
        self.uses_gradients = uses_gradients
        self.tta_transforms = FLIPS_AND_SCALES if tta_transforms is None else tta_transforms
        self.detach = detach
        self.outputs: Any = None
        self.activations_and_grads = ActivationsAndGradients(model, self.target_layers, reshape_transform, detach)
        # Whether gradcam_fast refused the layers, which are then read as pytorch-grad-cam reads them.
        self._refused = False
        # Whether the model returned no logits, so that classes, too, are picked by calling their targets.
        self._calls_targets = False

    def __call__(
        self,
        input_tensor: Tensor,
        targets: Sequence[Any] | None = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
        *,
        target_category: int | Sequence[int] | None = None,
    ) -> NDArray[np.float32]:
        """Maps (B,H,W) in [0,1], float32; of volumes (B,D,H,W).

        Args:
            input_tensor: (B,C,H,W) or (B,C,D,H,W); moved to the model's device.
            targets: for each image a callable from its output to a number, or a class index; None = its highest logit.
            aug_smooth: average the maps of flipped and scaled images.
            eigen_smooth: the first principal component of the weighted activations in place of their sum.
            target_category: ``targets`` of old releases: a class index, or one for each image.

        Raises:
            ValueError: there are fewer targets than images.
        """
        if target_category is not None:
            targets = target_category  # type: ignore[assignment] # an int becomes a list below
        if self._uses(targets):
            targets = check_targets(targets, input_tensor)
        if aug_smooth:
            return self.forward_augmentation_smoothing(input_tensor, targets, eigen_smooth)
        return self.forward(input_tensor, targets, eigen_smooth)

    def forward(self, input_tensor: Tensor, targets: Targets, eigen_smooth: bool = False) -> NDArray[np.float32]:
        """The maps without augmentation; ``targets`` may be a function from the model's output to the list."""
        input_tensor = input_tensor.to(self.device) if self.device is not None else input_tensor
        if not callable(targets) and self._uses(targets):
            targets = check_targets(targets, input_tensor)
        if self._can_prune():
            self.outputs = self._run_pruned(input_tensor, targets)
        if not self._can_prune():
            input_tensor, self.outputs = self._run_whole(input_tensor, targets)
        per_image = _per_image(self.outputs, targets)
        maps = self.aggregate_multi_layers(self.compute_cam_per_layer(input_tensor, per_image, eigen_smooth))
        if not self.detach:
            self.activations_and_grads.release()
        elif not maps.any():
            self._warn_without_gradient()
        return maps

    def get_cam_weights(
        self,
        input_tensor: Tensor,
        target_layer: nn.Module,
        targets: Any,
        activations: Any,
        grads: Any,
    ) -> NDArray[Any]:
        """Weights (B,C) of the channels of activations (B,C,h,w); for subclasses."""
        raise NotImplementedError(f"{type(self).__name__} gives neither get_cam_weights nor get_cam_image")

    def get_cam_image(
        self,
        input_tensor: Tensor,
        target_layer: nn.Module,
        targets: Any,
        activations: Any,
        grads: Any,
        eigen_smooth: bool = False,
    ) -> NDArray[Any]:
        """The map (B,h,w): the weighted sum of the activations over the channels, or with ``eigen_smooth`` their first
        principal component."""
        weights = np.asarray(self.get_cam_weights(input_tensor, target_layer, targets, activations, grads))
        if isinstance(activations, torch.Tensor):
            reshape = self.activations_and_grads.reshape_transform
            activations = (activations if reshape is None else reshape(activations)).detach().cpu().numpy()
        if activations.ndim not in (4, 5):
            raise ValueError(_no_map(activations))
        weighted = weights.reshape(*weights.shape, *[1] * (activations.ndim - 2)) * activations
        return get_2d_projection(weighted) if eigen_smooth else weighted.sum(axis=1)

    def get_target_width_height(self, input_tensor: Tensor) -> tuple[int, ...]:
        """The sides of the images, the last first: (W,H) or (W,H,D)."""
        if input_tensor.dim() not in (4, 5):
            raise ValueError(
                f"input_tensor has shape {tuple(input_tensor.shape)}; give images (B,C,H,W) or volumes (B,C,D,H,W)"
            )
        return tuple(input_tensor.shape[:1:-1])

    def compute_cam_per_layer(self, input_tensor: Tensor, targets: Any, eigen_smooth: bool) -> Any:
        """For each target layer its map (B,1,H,W), ReLU'd, scaled to [0,1] and then resized."""
        recorded = self.activations_and_grads
        size = self.get_target_width_height(input_tensor)
        maps, method = recorded.feature_maps, self._fused_method()
        if maps is not None and method is not None and not eigen_smooth:
            small = [
                cam(
                    of_layer.activations,
                    of_layer.gradients,
                    tuple(of_layer.activations.shape[2:]),
                    method=method,
                    normalize="none",
                )[0]
                for of_layer in maps
            ]
            return [scale_cam_image(of_layer.cpu().numpy(), size)[:, None] for of_layer in small]
        activations, gradients = recorded.activations, recorded.gradients
        if self.detach:
            activations, gradients = ([tensor.numpy() for tensor in tensors] for tensors in (activations, gradients))
        per_layer = []
        for i, layer in enumerate(self.target_layers):
            a, g = (values[i] if i < len(values) else None for values in (activations, gradients))
            image = self.get_cam_image(input_tensor, layer, targets, a, g, eigen_smooth)
            if image.ndim != input_tensor.dim() - 1:
                raise ValueError(_no_map(a))
            per_layer.append(scale_cam_image(np.maximum(image, 0), size)[:, None])
        return per_layer

    def aggregate_multi_layers(self, cam_per_target_layer: Any) -> NDArray[np.float32]:
        """The mean of the layers' maps, scaled to [0,1]."""
        return scale_cam_image(np.maximum(np.concatenate(cam_per_target_layer, axis=1), 0).mean(axis=1))

    def forward_augmentation_smoothing(
        self, input_tensor: Tensor, targets: Targets, eigen_smooth: bool = False
    ) -> NDArray[np.float32]:
        """The mean of the maps of the variants that ``tta_transforms`` make of each image, all in one batch."""
        variants = list(self.tta_transforms)
        batches = [variant.augment_image(input_tensor) for variant in variants]
        repeated = targets if targets is None or callable(targets) else [*targets] * len(variants)
        if len({images.shape for images in batches}) == 1:
            maps = np.split(self.forward(torch.cat(batches), repeated, eigen_smooth), len(variants))
        else:
            maps = [self.forward(images, targets, eigen_smooth) for images in batches]
        turned_back = [
            variant.deaugment_mask(torch.from_numpy(of_variant)[:, None])[:, 0].numpy()
            for variant, of_variant in zip(variants, maps, strict=True)
        ]
        return np.mean(np.asarray(turned_back, dtype=np.float32), axis=0)

    def __enter__(self) -> BaseCAM:
        return self

    def __exit__(self, *_: object) -> None:
        self.activations_and_grads.release()

    def __del__(self) -> None:
        if "activations_and_grads" in vars(self):
            self.activations_and_grads.release()

    def _fused_method(self) -> str | None:
        functions = [getattr(getattr(self, name), "__func__", None) for name in ("get_cam_weights", "get_cam_image")]
        return _FUSED.get((functions[0], functions[1]))

    def _uses(self, targets: Any) -> bool:
        # Without gradients, an empty list is how some say that there are none.
        return self.uses_targets and not (not self.uses_gradients and hasattr(targets, "__len__") and not len(targets))

    def _warn_without_gradient(self) -> None:
        maps = self.activations_and_grads.feature_maps
        if maps is not None and self.uses_gradients and not any(bool(of_layer.gradients.any()) for of_layer in maps):
            names = ", ".join(repr(of_layer.layer) for of_layer in maps)
            warnings.warn(
                f"the gradient of the score at layer {names} is zero everywhere, so the maps are empty; choose another "
                "layer: gradcam_fast.explain(model, images).layer names one that has a gradient",
                stacklevel=4,
            )

    def _can_prune(self) -> bool:
        """Whether gradcam_fast captures activations and gradients, with a graph from the layers on only, or none."""
        return (
            self.detach
            and not self.compute_input_gradient
            and not self._refused
            and type(self.activations_and_grads) is ActivationsAndGradients
        )

    def _run_pruned(self, input_tensor: Tensor, targets: Targets) -> Any:
        recorded = self.activations_and_grads
        scores = scores_of_batch(targets, call=self._calls_targets) if self.uses_gradients else None
        try:
            maps = feature_maps(
                self.model,
                input_tensor,
                layer=self.target_layers,
                target=scores,
                tokens=recorded.reshape_transform or "auto",
                call=0,
                gradients=self.uses_gradients,
            )
        except NotSpatial:
            self._refused = True
            return None
        except TypeError:
            if not isinstance(scores, torch.Tensor):
                raise
            # A tuple, say. If it is something else, it is raised again.
            self._calls_targets = True
            return self._run_pruned(input_tensor, targets)
        recorded.feature_maps = maps
        return maps[0].logits

    def _run_whole(self, input_tensor: Tensor, targets: Targets) -> tuple[Tensor, Any]:
        """The input, which may have a gradient, and the output of a forward and backward of the whole model."""
        recorded = self.activations_and_grads
        if not self.uses_gradients:
            with torch.no_grad():
                return input_tensor, recorded(input_tensor)
        with torch.inference_mode(False), torch.enable_grad():
            # Gradients flow to the input and not to the weights, whose .grad stays as it is.
            input_tensor = input_tensor.detach().clone().requires_grad_()
            outputs = recorded(input_tensor)
            per_image = _per_image(outputs, targets)
            loss = sum(target(output) for target, output in zip(per_image, outputs, strict=False))
            if not isinstance(loss, torch.Tensor):
                raise ValueError(
                    f"targets={targets!r} gives no score of the model's output; give one target for each image"
                )
            if self.detach:
                loss.backward(inputs=[input_tensor])
            else:
                torch.autograd.grad(loss, input_tensor, create_graph=True)
        return input_tensor, outputs.detach() if isinstance(outputs, torch.Tensor) else outputs


def _per_image(outputs: Any, targets: Targets) -> Any:
    if targets is None:
        return highest_logits(outputs)
    return targets(outputs) if callable(targets) else targets


def _no_map(activations: Any) -> str:
    return (
        f"the target layer returns shape {tuple(activations.shape)}, which is no map (B,C,h,w) or (B,C,d,h,w); give "
        "reshape_transform=, a function from it to such a map"
    )


def _modules(target_layers: Any) -> list[nn.Module]:
    """The modules in a list, or in a container of modules as pytorch-grad-cam takes it."""
    if not hasattr(target_layers, "__iter__"):
        given = f"is a {type(target_layers).__name__}"
    else:
        layers = list(target_layers)
        others = [layer for layer in layers if not isinstance(layer, nn.Module)]
        if not others:
            return layers
        given = f"has a {type(others[0]).__name__}"
    raise TypeError(f"target_layers {given}; give a list of modules, such as [model.layer4]")


def _trains(model: nn.Module) -> bool:
    """Whether any module is in training mode; much quicker than ``model.eval()``."""
    pending: list[nn.Module | None] = [model]
    for module in pending:
        if module is not None:
            if module.training:
                return True
            pending += module._modules.values()
    return False


def _device(model: nn.Module) -> torch.device | None:
    parameter = next(model.parameters(), None)
    return None if parameter is None else parameter.device
