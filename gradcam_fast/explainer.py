"""From images to an explanation: one forward, one small backward, one call of the op.

Puts together capture, outputs, layers and ops; holds no state but the caller's choices.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from . import capture, layers, ops, outputs
from .contract import METHODS, NORMALIZATIONS, check_choice, check_size
from .explanation import Explanation
from .gradients import gradients
from .inputs import as_inputs, as_model
from .reference import normalise

if TYPE_CHECKING:
    from torch import Tensor

    from .contract import Size
    from .inputs import Inputs
    from .layers import Layer, LayerChoice

__all__ = ["Explainer", "explain"]


class Explainer:
    """A model together with the choices of how to explain it; call it with images.

    Args:
        model: any ``nn.Module`` on any device; in training mode dropout and batch-norm act as they do in training,
            and batch-norm's running statistics are put back afterwards.
        layer: dotted name, module, or a list of these (the mean of their maps); None finds the last spatial feature
            map that the score depends on, by one trial run per model and image size.
        method: ``gradcam``, ``gradcam++``, ``xgradcam``, ``hirescam``, ``elementwise`` or ``layercam``;
            formulas and papers in :func:`gradcam_fast.reference.raw_map`.
        size: (H,W) of the heatmaps, or one integer for a square; None = the images' own.
        normalize: ``minmax`` (each map to [0,1]), ``max`` (x / max) or ``none``.
        relu: False keeps the evidence against the class.
        output: callable that picks the logits from what the model returns; None takes a tensor, ``.logits``,
            ``["out"]`` or the only tensor of a tuple or dict.
        tokens: how a token layer's positions lie; only "auto" so far.

    Raises:
        TypeError, ValueError: a choice that cannot work, in one sentence, before the model runs.

    Example:
        >>> import torch, gradcam_fast
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        ...     torch.nn.Linear(8, 5))
        >>> explainer = gradcam_fast.Explainer(model, method="layercam")
        >>> explanation = explainer(torch.rand(2, 3, 16, 16), topk=3)
        >>> explanation.heatmap.shape, explanation.layer
        (torch.Size([2, 3, 16, 16]), '1')
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layer: LayerChoice = None,
        method: str = "gradcam",
        size: Size | None = None,
        normalize: str = "minmax",
        relu: bool = True,
        output: Callable[[Any], Tensor] | None = None,
        tokens: str = "auto",
    ) -> None:
        self.model = as_model(model)
        check_choice("method", method, METHODS)
        check_choice("normalize", normalize, NORMALIZATIONS)
        check_choice("tokens", tokens, ("auto",))
        if output is not None and not callable(output):
            raise TypeError(f"output={output!r} is not callable; give a function that picks the logits")
        self.method = method
        self.normalize = normalize
        self.relu = relu
        self.size = None if size is None else check_size(size)
        self.output = output
        self.layers = layers.named(self.model, layer)

    def __call__(self, images: Any, target: Any = None, topk: int | None = None) -> Explanation:
        """Explain a batch; see :func:`gradcam_fast.explain` for the arguments."""
        inputs, main = as_inputs(self.model, images)
        batch = main.shape[0]
        target = outputs.check_target(target, topk, batch)
        size = self.size or (main.shape[-2], main.shape[-1])
        chosen = self.layers or (self._find(inputs, main, target, topk),)

        with capture.preserved(self.model):
            returned, activations = capture.forward(self.model, inputs, chosen)
            logits, scores, target = self._score(returned, target, topk, batch)
            slopes = gradients(scores, activations, chosen)
        with torch.inference_mode(False), torch.no_grad():
            return self._explanation(logits, scores.detach(), target, activations, slopes, chosen, size)

    def _score(self, returned: Any, target: Any, topk: int | None, batch: int) -> tuple[Any, Tensor, Tensor | None]:
        with torch.inference_mode(False), torch.enable_grad():
            logits = outputs.pick_logits(returned, self.output, required=not callable(target))
            return logits, *outputs.score(logits, target, topk, batch)

    def _find(self, inputs: Inputs, main: Tensor, target: Any, topk: int | None) -> Layer:
        # One image is enough, unless something may depend on the whole batch.
        alone = len(inputs.args) == 1 and not callable(target) and not self.model.training
        trial = inputs.map(lambda images: images[:1]) if alone else inputs
        trial_target, trial_topk = (None, None) if alone else (target, topk)
        trial_batch = min(1, main.shape[0]) if alone else main.shape[0]
        return layers.find(
            self.model,
            trial,
            lambda returned: self._score(returned, trial_target, trial_topk, trial_batch)[1],
            key=tuple(main.shape[1:]),
        )

    def _explanation(
        self,
        logits: Any,
        scores: Tensor,
        target: Tensor | None,
        activations: Sequence[Tensor],
        gradients: Sequence[Tensor],
        chosen: Sequence[Layer],
        size: tuple[int, int],
    ) -> Explanation:
        maps = []
        for layer, a, g in zip(chosen, activations, gradients, strict=True):
            if a.dim() != 4:
                raise ValueError(
                    f"layer {layer.name!r} returns shape {tuple(a.shape)}, not spatial feature maps (B,C,h,w); choose "
                    "a layer that does, or layer=None to have one found"
                )
            maps.append(ops.cam(a.detach(), g, size, method=self.method, normalize=self.normalize, relu=self.relu))
        heatmap, low, high = maps[0]
        if len(maps) > 1:
            heatmap = torch.stack([each[0] for each in maps]).mean(0)
            low, high = heatmap.amin((-2, -1)), heatmap.amax((-2, -1))
            heatmap = normalise(heatmap, low, high, self.normalize)
        valid = high > low
        if self.normalize == "max":
            valid &= high > 0
        _warn_if_vanished(valid, gradients, chosen)
        names = tuple(layer.name for layer in chosen)
        return Explanation(
            heatmap=heatmap.float(),
            logits=outputs.detached(logits),
            target=target,
            score=scores,
            raw_min=low.float(),
            raw_max=high.float(),
            valid=valid,
            layer=names[0] if len(names) == 1 else names,
        )


def explain(
    model: nn.Module,
    images: Any,
    *,
    target: Any = None,
    topk: int | None = None,
    layer: LayerChoice = None,
    method: str = "gradcam",
    size: Size | None = None,
    normalize: str = "minmax",
    relu: bool = True,
    output: Callable[[Any], Tensor] | None = None,
    tokens: str = "auto",
) -> Explanation:
    """Predict a batch and show where the model looked: one forward, and per image and class one heatmap.

    Args:
        model: any ``nn.Module``; it is left exactly as it was.
        images: (B,C,H,W) floating tensor on the model's device, prepared as the model expects it; (C,H,W) is a batch
            of one. A tuple is passed as ``model(*images)``, a dict as ``model(**images)``; the first 4-D tensor counts.
        target: None = each image's highest logit; a class index; (B,) or (B,K) indices as integer tensor or list; or
            a callable that turns the model's output into (B,) or (B,K) scores.
        topk: explain the K highest logits of each image instead.
        layer, method, size, normalize, relu, output, tokens: see :class:`Explainer`.

    Returns:
        Explanation: heatmap (B,H,W), or (B,K,H,W) for K targets, logits, target, score, extremes, validity, layer.

    Raises:
        TypeError, ValueError: an argument that cannot work; before the model runs where it can be known.
        RuntimeError: the layer did not run, or the score does not depend on it.

    Warns:
        UserWarning: on the CPU, when every gradient at the layer is zero. Elsewhere see ``valid``; looking would make
        the host wait for the device.

    Example:
        >>> import torch, gradcam_fast
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        ...     torch.nn.Linear(8, 5))
        >>> explanation = gradcam_fast.explain(model, torch.rand(2, 3, 16, 16))
        >>> explanation.heatmap.shape, explanation.layer
        (torch.Size([2, 16, 16]), '1')
        >>> bool((explanation.target == explanation.logits.argmax(1)).all())
        True
    """
    explainer = Explainer(
        model, layer=layer, method=method, size=size, normalize=normalize, relu=relu, output=output, tokens=tokens
    )
    return explainer(images, target, topk)


def _warn_if_vanished(valid: Tensor, gradients: Sequence[Tensor], chosen: Sequence[Layer]) -> None:
    if valid.device.type != "cpu" or not len(valid) or valid.any() or any(maps.any() for maps in gradients):
        return
    names = ", ".join(repr(layer.name) for layer in chosen)
    warnings.warn(
        f"the gradient of the score at layer {names} is zero everywhere, so the heatmaps are empty; choose another "
        "layer or target (a saturated sigmoid or a head of zeros has no gradient)",
        stacklevel=4,
    )
