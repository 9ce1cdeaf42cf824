"""From images to an explanation: one forward, one small backward, one call of the op.

Puts together what is asked, the evidence and the maps; holds the caller's choices, and recordings if asked to.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ._capture import scores as outputs
from ._capture.capture import Request, capture_after_search, capture_or_search
from ._capture.image_selection import check_when, nothing, of_chosen
from ._cuda_graph.cache import Graphs
from ._layout.feature_layout import ImageGeometry, check_tokens
from ._model.inputs import InputAxes, check_inputs, unwrap_model
from ._model.target_layer import resolve_layers
from .explanation import Explanation
from .ops.arguments import METHODS, NORMALIZATIONS, check_choice, check_relu, check_size
from .ops.heatmaps import gradients_vanished, heatmaps

if TYPE_CHECKING:
    from torch import Tensor

    from ._capture.capture import Capture
    from ._capture.image_selection import When
    from ._layout.feature_layout import Tokens
    from ._model.target_layer import LayerChoice, TargetLayer
    from .ops.arguments import Size

__all__ = ["Explainer", "explain"]


class Explainer:
    """A model together with the choices of how to explain it; call it with images.

    Args:
        model: any ``nn.Module`` on any device; in training mode dropout and batch-norm act as they do in training,
            and the buffers of modules in training mode (batch-norm's running statistics) are put back afterwards; what
            a training step in another thread writes to them meanwhile is lost.
        layer: dotted name, module, or a list of these (the mean of their maps); None finds the last spatial feature
            map that the score depends on, by trial runs, once per model, image size, and place in the code where
            callables for ``target``, ``output`` and ``tokens`` are written.
        method: ``gradcam``, ``gradcam++``, ``xgradcam``, ``hirescam``, ``elementwise`` or ``layercam``;
            formulas and papers in :func:`gradcam_fast.reference.raw_map`.
        size: (H,W) of the heatmaps, or one integer for all sides; None = the images' own.
        normalize: ``minmax`` (each map to [0,1]), ``max`` (x / max) or ``none``.
        relu: False keeps the evidence against the class.
        output: callable that picks the logits from what the model returns; None takes a tensor, ``.logits``,
            ``["out"]`` or the only tensor of a tuple or dict.
        tokens: where the positions are in what a transformer's layer returns, (B,N,C) or (N,B,C). "auto" sets class and
            register tokens in front aside and infers the grid from N, the images' sides and the strides of the model's
            convolutions; or the grid (h,w) of the last h x w tokens; or a callable from what the layer returns to
            (B,C,h,w), used on the gradients too.
        cuda_graph: True records what a call does on a CUDA device when its like comes for the second time, and then
            replays that in one launch, without the model's Python: attributes and branches are as they were. Values
            written into the weights are seen; after new tensors or modes it records anew. Where it cannot (CPU,
            training mode, hooks, a host that waits) it runs eagerly; a warning and ``graphs.eager_because`` say why.
        when: callable from the logits (what ``Explanation.logits`` will be; to read only) to booleans (B,): only these
            images are explained, with the bits they have without it. Of the others the heatmap is zeros, the extremes
            are NaN and ``valid`` is False; logits, target and score are there. Maps are made of the chosen only. The
            backward behind the layer is the whole batch's, and left out where no image is chosen and the layer is
            known. The host waits for the choice, so that it does not go with ``cuda_graph``.

    Raises:
        TypeError, ValueError: a choice that cannot work, in one sentence, before the model runs; called, what ``when``
            returned is not booleans (B,).

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
        tokens: Tokens = "auto",
        cuda_graph: bool = False,
        when: When | None = None,
    ) -> None:
        self.model = unwrap_model(model)
        check_choice("method", method, METHODS)
        check_choice("normalize", normalize, NORMALIZATIONS)
        check_relu(relu)
        self.tokens = check_tokens(tokens)
        if output is not None and not callable(output):
            raise TypeError(f"output={output!r} is not callable; give a function that picks the logits")
        self.method, self.normalize, self.relu = method, normalize, relu
        self.axes = InputAxes(self.model)
        self.size = size if size is None else check_size(size, self.axes.rank)
        self.output = output
        self.layers = resolve_layers(self.model, layer)
        self.when = check_when(when, cuda_graph=cuda_graph)
        self.graphs = Graphs() if cuda_graph else None

    def __call__(self, images: Any, target: Any = None, topk: int | None = None) -> Explanation:
        """Explain a batch; see :func:`gradcam_fast.explain` for the arguments."""
        request = self.ask(images, target, topk)
        return self.explained(request) if self.graphs is None else self.graphs.explain(self, request)

    def explained(self, request: Request) -> Explanation:
        """The answer to a request, from the layers that were named or are found."""
        evidence = capture_or_search(self.model, request, self.layers)
        explanation = self._explanation(evidence, request)
        empty = gradients_vanished(explanation.valid, evidence.gradients)
        if empty and evidence.recalled:
            evidence = capture_after_search(self.model, request)
            explanation = self._explanation(evidence, request)
            empty = gradients_vanished(explanation.valid, evidence.gradients)
        if empty:
            warnings.warn(
                f"the gradient of the score at layer {', '.join(map(repr, evidence.layers))} is zero everywhere, so the"
                " heatmaps are empty; choose another layer or target (a saturated sigmoid or a head of zeros has none)",
                stacklevel=3,
            )
        return explanation

    def explained_at(self, request: Request, layers: Sequence[TargetLayer]) -> Explanation:
        """The answer from these layers, without the host ever waiting for the device."""
        return self._explanation(capture_or_search(self.model, request, layers), request)

    def ask(self, images: Any, target: Any = None, topk: int | None = None) -> Request:
        """The request that a call with these arguments asks, checked."""
        inputs, main = check_inputs(self.model, self.axes.rank, images)
        geometry = ImageGeometry(main.shape[0], self.axes.sides(main), self.axes.patches)
        target = outputs.check_target(target, topk, geometry.batch)
        return Request(inputs, geometry, target, topk, self.output, self.tokens, self.when)

    def _explanation(self, evidence: Capture, request: Request) -> Explanation:
        with torch.inference_mode(False), torch.no_grad():
            heatmap, low, high, valid = self._results(evidence, self.size or request.geometry.size)
        layer = evidence.layers[0] if len(evidence.layers) == 1 else evidence.layers
        return Explanation(heatmap, evidence.logits, evidence.target, evidence.scores, low, high, valid, layer)

    def _results(self, evidence: Capture, size: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        made = partial(heatmaps, size=size, method=self.method, normalize=self.normalize, relu=self.relu)
        if evidence.chosen is None:
            return made(evidence.activations, evidence.gradients)
        device = evidence.activations[0].device
        chosen = evidence.chosen.to(device)
        results = nothing(evidence.scores.shape, size, device)
        if len(chosen):
            both = evidence.activations, evidence.gradients
            some = made(*([of_chosen(each, chosen) for each in maps] for maps in both))
            for whole, part in zip(results, some, strict=True):
                whole[chosen] = part
        return results


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
    tokens: Tokens = "auto",
) -> Explanation:
    """Predict a batch and show where the model looked: one forward, and per image and class one heatmap.

    The first call for a model and image size runs the model one to three times more (with several inputs two to five
    times), on one image if it can, to find the layer; name a ``layer`` to spare that.

    Args:
        model: any ``nn.Module``; it is left exactly as it was.
        images: (B,C,H,W) floating tensor on the model's device, prepared as the model expects it; (C,H,W) is a batch
            of one. A tuple is passed as ``model(*images)``, a dict as ``model(**images)``; the first 4-D tensor counts:
            the layer is found among those that see it.
            Time series (B,C,L) go to models of 1-D convolutions, volumes (B,C,D,H,W) to those of 3-D ones.
        target: None = each image's highest logit; a class index; (B,) or (B,K) indices as integer tensor or list; or
            a callable that turns what the model returns (or what ``output`` picks) into (B,) or (B,K) scores; or a
            list of B callables, each from one image's part of that (its logits) to one score.
        topk: explain the K highest logits of each image instead.
        layer, method, size, normalize, relu, output, tokens: see :class:`Explainer` (and its ``cuda_graph``, ``when``).

    Returns:
        Explanation: heatmap (B,H,W), or (B,K,H,W) for K targets, logits, target, score, extremes, validity, layer. Of
        series the heatmap is (B,L), of volumes (B,D,H,W).

    Raises:
        TypeError, ValueError: an argument that cannot work; before the model runs where it can be known.
        RuntimeError: the layer did not run, or the score does not depend on it.
        ValueError: the layer's output is no spatial map of the images.

    Warns:
        UserWarning: on the CPU, when every gradient at the layer is zero. Elsewhere see ``valid``; looking would make
        the host wait for the device. When the layer found only cuts the images into patches, because the tokens behind
        it cannot be read.

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
