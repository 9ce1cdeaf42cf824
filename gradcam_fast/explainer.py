"""The public API: checks the arguments, captures activations and gradients, calls the op, returns an Explanation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ._capture.capture import Request, capture
from ._capture.hooks import ran_several_times
from ._capture.image_selection import check_when, empty_results, rows_of_samples, select_images
from ._capture.scores import check_target
from ._layer_search.search import (
    ask_for_patches,
    capture_at_found_layers,
    capture_at_remembered_layers,
    known_patch_tokens,
)
from ._layout.feature_layout import ImageGeometry, check_tokens
from ._layout.token_grid import UnknownPatches
from ._model.graph_break import runs_eagerly
from ._model.inputs import ImageAxes, check_inputs, unwrap_model
from ._model.target_layer import TargetLayer, check_call, resolve_layers
from ._model.warning import warn_caller
from .exceptions import NotSpatial
from .explanation import Explanation
from .ops.arguments import METHODS, NORMALIZATIONS, check_choice, check_relu, check_size
from .ops.heatmaps import gradients_vanished, heatmaps, heatmaps_of_several

if TYPE_CHECKING:
    from torch import Tensor

    from ._capture.capture import Capture
    from ._cuda_graph.cache import GraphCache
    from ._model.inputs import Inputs, Taken
    from .compiled import CompiledExplainer
    from .types import Call, Images, Layer, Output, Size, Target, Tokens, When

__all__ = ["Explainer", "explain"]


class Explainer:
    """A model together with the choices of how to explain it; call it with images.

    Args:
        model: any ``nn.Module`` on any device. In training mode dropout and batch-norm act as they do in training, and
            the buffers of modules in training mode (batch-norm's running statistics) are put back afterwards. If a
            training step in another thread writes to them during the call, its values are lost.
        layer: dotted name, module, or a list of these (the mean of their maps); None finds the last spatial feature
            map through which all of the score's dependence on the image goes (or the last maps of all branches
            together), by one trial run for each model, image size, and part of the model's output that is explained.
        method: ``gradcam``, ``gradcam++``, ``xgradcam``, ``hirescam``, ``elementwise`` or ``layercam``;
            formulas and papers in :func:`gradcam_fast.reference.raw_map`.
        size: (H,W) of the heatmaps in pixels, or one integer for all sides; None = the images' own size.
        normalize: ``minmax`` (each map to [0,1]), ``max`` (x / max) or ``none``.
        relu: True sets negative values, which speak against the class, to 0 before upsampling; False keeps them.
        output: callable that picks the logits from what the model returns; None takes a tensor, ``.logits``,
            ``["out"]`` or the only tensor of a tuple or dict.
        tokens: the positions in what a transformer's layer returns, (B,N,C) or (N,B,C). "auto" sets class and register
            tokens in front aside and infers the grid from N, the images' sides and the strides of the model's
            convolutions; (h,w) is the grid of the last h x w tokens; a callable turns what the layer returns, and the
            gradients of that, into (B,C,h,w).
        call: which call of a layer that runs several times in one forward: 0 for the first, -1 for the last, or "all"
            for a map of each, (B,calls,H,W), on one scale. None takes the last that sees the images; of samples of
            several pictures, those of all pictures. Of several inputs of images, a call that sees another than the
            first explains that one, in its size. Without ``layer`` each explanation takes two forwards.
        cuda_graph: True records the second of several similar calls on a CUDA device, and replays the recording in one
            launch for all later ones. A replay does not run the model's Python code: attributes and branches are as
            they were when recorded. It does use new values in the weights; after new tensors or modes the call is
            recorded again. Calls that cannot be recorded (on the CPU, in training mode, with hooks, or where the host
            must wait for a result) run eagerly; a warning and ``eager_because`` say why.
        when: callable from the logits (those of ``Explanation.logits``; it must not modify them) to booleans (B,): only
            images with True are explained, with the same bits as without ``when``. The other images get a heatmap of
            zeros, NaN extremes and ``valid`` False, but their own logits, target and score. The backward still covers
            the whole batch; it is left out if no image is chosen and the layer is known. The host waits for the
            booleans, so ``when`` cannot be combined with ``cuda_graph``.

    Raises:
        TypeError, ValueError: an argument that cannot work, before the model runs; or, when called, ``when`` does not
            return booleans (B,).

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

    @runs_eagerly
    def __init__(
        self,
        model: nn.Module,
        *,
        layer: Layer = None,
        method: str = "gradcam",
        size: Size | None = None,
        normalize: str = "minmax",
        relu: bool = True,
        output: Output | None = None,
        tokens: Tokens = "auto",
        call: Call = None,
        cuda_graph: bool = False,
        when: When | None = None,
    ) -> None:
        self._model = unwrap_model(model)
        check_choice("method", method, METHODS)
        check_choice("normalize", normalize, NORMALIZATIONS)
        check_relu(relu)
        self._tokens = check_tokens(tokens)
        if output is not None and not callable(output):
            raise TypeError(f"output={output!r} is not callable; give a function that picks the logits")
        self._method, self._normalize, self._relu = method, normalize, relu
        self._axes = ImageAxes(self._model)
        self._size = size if size is None else check_size(size, self._axes.rank)
        self._output = output
        self._call = check_call(call)
        self._layers = resolve_layers(self._model, layer, call)
        # Layers that were explained at a call that was found, which their names alone do not tell.
        self._at_earlier_calls: set[str] = set()
        self._when = check_when(when, cuda_graph=cuda_graph)
        # Made for the first batch without any gradient at the named layers.
        self._advice: str | None = None
        self._graphs = self._new_graph_cache() if cuda_graph else None

    @runs_eagerly
    def __call__(self, images: Images, target: Target = None, topk: int | None = None) -> Explanation:
        """Explain a batch; see :func:`gradcam_fast.explain` for the arguments."""
        request = self._request(images, target, topk)
        return self._explain(request) if self._graphs is None else self._graphs(request)

    def compile(
        self,
        images: Images,
        *,
        target: Target = None,
        topk: int | None = None,
        dynamic_batch: bool = True,
        dynamic_sides: bool = False,
        freeze: bool = True,
        fallback: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> CompiledExplainer:
        """Compile prediction and explanation into one graph; the result is called like this explainer.

        This takes as long as compiling the model with ``torch.compile``, and needs a C++ compiler. The graph is for the
        device, dtype, layout in memory and number of axes of ``images``, and for this kind of target: the highest
        logit, K highest logits, classes (of any values), or this callable. A call with others compiles another graph,
        as does one image after several. Modules' attributes, callables and all other Python values count as they were.

        Args:
            images, target, topk: an example of the calls to come.
            dynamic_batch: whether one graph serves all batches of at least two images; False compiles one for each
                number of images, which may be faster. It is also done where the model itself fixes the number.
            dynamic_sides: whether one graph serves images of all sizes.
            freeze: whether the values of the weights are folded and packed, which makes the graph faster. If the model
                has changed since (its tensors, their values, modes, hooks or modules), the next call compiles again.
                Two elements of each tensor in host memory are compared, so that writes through ``.data``, too, are
                noticed if they change one of these. With False, new values in the same tensors need no compilation.
            fallback: "eager" explains what cannot be compiled eagerly, with a warning; ``eager_because`` says why.
            options: of PyTorch's inductor, such as ``{"triton.cudagraphs": True}`` on a CUDA device.

        Raises:
            gradcam_fast.exceptions.CannotCompile: the model is in training mode or has hooks, an operation cannot be
                traced (the message has the model's line), or there is no C++ compiler; not with ``fallback="eager"``.

        Example:
            >>> import torch, gradcam_fast
            >>> model = torch.nn.Sequential(
            ...     torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
            ...     torch.nn.Linear(8, 5)).eval()
            >>> compiled = gradcam_fast.Explainer(model).compile(torch.rand(2, 3, 16, 16), fallback="eager")
            >>> compiled(torch.rand(7, 3, 16, 16)).heatmap.shape
            torch.Size([7, 16, 16])
        """
        from .compiled import compile_explainer

        return compile_explainer(
            self,
            images,
            target,
            topk,
            dynamic_batch=dynamic_batch,
            dynamic_sides=dynamic_sides,
            freeze=freeze,
            fallback=fallback,
            options=options,
        )

    @property
    def model(self) -> nn.Module:
        """The module that runs: the one inside wrappers such as ``torch.compile``'s."""
        return self._model

    @property
    def eager_because(self) -> str | None:
        """Why the last call with ``cuda_graph=True`` ran eagerly; None if it, or the next call like it, is replayed."""
        return None if self._graphs is None else self._graphs.eager_because

    def _new_graph_cache(self) -> GraphCache:
        # Imported here, because few programs need it.
        from ._cuda_graph.cache import GraphCache

        return GraphCache(self._model, self._layers, self._explain, self._explain_at)

    def _request(self, images: Images, target: Target = None, topk: int | None = None) -> Request:
        axes = self._axes
        inputs, taken = check_inputs(self._model, axes, images, _try_inputs)
        batch = inputs.images
        patch_tokens = known_patch_tokens(self._model, batch)
        sides = axes.sides(batch)[:: -1 if taken.transposed else 1]
        geometry = ImageGeometry(batch.shape[0], sides, axes.patches, patch_tokens, transposed=taken.transposed)
        if len(inputs.args) + len(inputs.kwargs) > 1:
            alike = sum(images.shape == batch.shape for images in inputs.all_images.values())
            geometry = replace(geometry, inputs=alike)
        if (axis := axes.picture_axis(batch)) is not None:
            geometry = replace(geometry, pictures=batch.shape[axis], picture_axis=axis)
        if isinstance(target, (str, list, tuple)):
            from .targets.class_names import without_names

            target = without_names(target, self._model)
        target = check_target(target, topk, geometry.batch)
        return Request(inputs, geometry, target, topk, self._output, self._tokens, self._when)

    def _capture(self, request: Request) -> tuple[Request, Capture]:
        """The capture, and the request about the images explained: ``call=`` may name others than the first."""
        layers: Sequence[TargetLayer] | None = self._layers
        if layers is None:
            captured = self._capture_at_found(request)
            if self._call is None:
                return request, self._of_one_input(request, captured)
            layers = [replace(explained.layer, call=self._call) for explained in captured.calls]
        if self._takes_several_images(request):
            from ._layer_search.pictures import resolve_calls

            request, layers = resolve_calls(self._model, request, layers)
            return request, self._of_one_input(request, self._capture_at(request, layers))
        not_spatial = None
        try:
            captured = self._capture_at(request, layers)
        except NotSpatial as error:
            not_spatial = error
        if request.geometry.pictures is None:
            for layer in layers:
                if layer.call is None and ran_several_times(layer.module):
                    from ._layer_search.pictures import resolve_calls

                    request, resolved = resolve_calls(self._model, request, layers)
                    if list(resolved) != list(layers):  # the last call was on something else than the images
                        return request, self._capture_at(request, resolved)
                    break
        if not_spatial is not None:
            raise not_spatial
        return request, captured

    def _of_one_input(self, request: Request, captured: Capture) -> Capture:
        """The capture of the images explained alone, where a layer ran on several inputs of images at once."""
        if not any(calls.of_inputs for calls in captured.calls):
            return captured
        from ._layer_search.pictures import select_input

        return select_input(self._model, request, captured)

    def _takes_several_images(self, request: Request) -> bool:
        inputs = request.inputs
        return len(inputs.args) + len(inputs.kwargs) > 1 and len(inputs.all_images) > 1

    def _capture_at_found(self, request: Request) -> Capture:
        return capture_at_remembered_layers(self._model, request) or capture_at_found_layers(self._model, request)

    def _capture_at(self, request: Request, layers: Sequence[TargetLayer]) -> Capture:
        try:
            return capture(self._model, request, layers)
        except UnknownPatches as unknown:
            ask_for_patches(self._model, request, unknown.count)
        return capture(self._model, request, layers)

    def _explain(self, request: Request) -> Explanation:
        """The explanation from the layers that were named or are found."""
        request, captured = self._capture(request)
        if self._layers is None or self._call is None:
            for calls in captured.calls:
                if calls.layer.call is not None:
                    self._at_earlier_calls.add(calls.layer.name)
        explanation = self._explanation(captured, request, may_wait=True)
        empty = _has_no_gradient(captured, explanation)
        if empty and captured.layer_remembered:
            captured = self._of_one_input(request, capture_at_found_layers(self._model, request))
            explanation = self._explanation(captured, request, may_wait=True)
            empty = _has_no_gradient(captured, explanation)
        if empty:
            if self._layers and self._advice is None:
                from ._layer_search.advice import advice_without_gradient

                self._advice = advice_without_gradient(self._model, request, self._layers)
            advice = self._advice or "choose another layer or target (a saturated sigmoid or a head of zeros has none)"
            problem = (
                "has a mean of no more than rounding noise (as behind a softmax over the positions), so the heatmaps "
                "mean nothing"
                if any(maps.any() for maps in captured.gradients)
                else "is zero everywhere, so the heatmaps are empty"
            )
            warn_caller(
                f"the gradient of the score at layer {', '.join(map(repr, captured.layers))} {problem}; {advice}"
            )
        return explanation

    def _explain_at(self, request: Request, layers: Sequence[TargetLayer]) -> Explanation:
        """The explanation from these layers; the host never waits for the device."""
        asks = request.geometry.pictures is not None or self._takes_several_images(request)
        if asks or any(layer.name in self._at_earlier_calls for layer in layers):
            from ._cuda_graph.checks import CannotRecord

            raise CannotRecord("which pictures a layer's maps are of is asked of the model, and the host waits for it")
        return self._explanation(capture(self._model, request, layers), request, may_wait=False)

    def _explanation(self, captured: Capture, request: Request, *, may_wait: bool) -> Explanation:
        with torch.inference_mode(False), torch.no_grad():
            heatmap, raw_min, raw_max, valid, codes = self._results(captured, request, may_wait=may_wait)
            if request.geometry.transposed:
                heatmap = heatmap.transpose(-1, -2).contiguous()
        layer = captured.layers[0] if len(captured.layers) == 1 else captured.layers
        return Explanation(
            heatmap, captured.logits, captured.target, captured.scores, raw_min, raw_max, valid, layer, codes
        )

    def _results(
        self, captured: Capture, request: Request, *, may_wait: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        size = self._size or request.geometry.size
        if self._size and request.geometry.transposed:
            size = size[::-1]
        axes = size
        to_heatmaps: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = heatmaps
        if any(calls.maps_per_sample is not None for calls in captured.calls):
            from ._layer_search.pictures import sort_pictures

            captured, pictures = sort_pictures(self._model, request, captured)
            to_heatmaps = partial(heatmaps_of_several, pictures=pictures)
            axes = (len(set(chain(*pictures))), *size)
        to_heatmaps = partial(
            to_heatmaps,
            size=size,
            method=self._method,
            normalize=self._normalize,
            relu=self._relu,
            may_wait=may_wait,
        )
        if captured.selected is None:
            return to_heatmaps(captured.activations, captured.gradients)
        device = captured.activations[0].device
        selected = captured.selected.to(device)
        results = empty_results(captured.scores.shape, axes, device)
        if len(selected):
            rows = [rows_of_samples(selected, calls.maps_per_sample) for calls in captured.calls]
            activations = [select_images(maps, chosen) for maps, chosen in zip(captured.activations, rows, strict=True)]
            gradients = [select_images(maps, chosen) for maps, chosen in zip(captured.gradients, rows, strict=True)]
            for result, selected_result in zip(results, to_heatmaps(activations, gradients), strict=True):
                result[selected] = selected_result
        return results


def _has_no_gradient(captured: Capture, explanation: Explanation) -> bool:
    # Images that were not selected may have a gradient where the selected ones have none: the layer serves the batch.
    return gradients_vanished(explanation.reason_codes) and not (
        captured.selected is not None and any(maps.any() for maps in captured.gradients)
    )


def _try_inputs(model: nn.Module, inputs: Inputs, *, per_sample: bool) -> Taken | Exception:
    from ._layer_search.pictures import try_inputs

    return try_inputs(model, inputs, per_sample=per_sample)


@runs_eagerly
def explain(
    model: nn.Module,
    images: Images,
    *,
    target: Target = None,
    topk: int | None = None,
    layer: Layer = None,
    method: str = "gradcam",
    size: Size | None = None,
    normalize: str = "minmax",
    relu: bool = True,
    output: Output | None = None,
    tokens: Tokens = "auto",
    call: Call = None,
) -> Explanation:
    """Predict a batch and show where the model looked: one forward, and per image and class one heatmap.

    The first call for a model and image size makes a trial run to find the layer, on one image if the model can: in the
    time of at most three predictions, and with the memory of at most 1.5 training steps. Name a ``layer`` to avoid it.
    For a transformer with extra tokens, one more trial run finds out which tokens are patches, also for a named layer.
    Where a sample is several pictures, or a layer may have run on several images, up to two more trial runs find out
    which map is of which.

    Args:
        model: any ``nn.Module``; it is left exactly as it was.
        images: (B,C,H,W) floating tensor on the model's device, prepared as the model expects it; (C,H,W) is a batch
            of one. A tuple is passed as ``model(*images)``, a dict as ``model(**images)``; the first 4-D tensor counts:
            it is the one explained, and the layer is found among those that see it.
            Time series (B,C,L) go to models of 1-D convolutions, volumes (B,C,D,H,W) to those of 3-D ones.
            Clips and views (B,T,C,H,W) go to models that run 2-D convolutions on each picture, at once or in turn: a
            heatmap for each, weighted by its own pooled gradient. The T heatmaps of a sample share one scale, so that
            they can be compared, and have one ``raw_min``, ``raw_max``, ``valid`` and ``reason``.
            Batches without channels, (B,L), (B,T,F) or (B,chans,time), go to models that take these.
        target: None = each image's highest logit; a class index; (B,) or (B,K) indices as integer tensor or list, where
            one row, ``[[1, 2]]``, is for every image; names instead of indices, where the model has them
            (:func:`gradcam_fast.targets.named`); a callable that turns what the model returns (or what ``output``
            picks) into (B,) or (B,K) scores, such as those of ``gradcam_fast.targets``; or a list of B callables, each
            from one image's part of that (its logits) to one score.
        topk: explain the K highest logits of each image instead.
        layer, method, size, normalize, relu, output, tokens, call: see :class:`Explainer` (and its ``cuda_graph`` and
            ``when``).

    Returns:
        Explanation: heatmap (B,H,W), or (B,K,H,W) for K targets, logits, target, score, extremes, validity, layer, and
        ``reason``, a word for each heatmap that shows nothing. Of series the heatmap is (B,L), of volumes (B,D,H,W), of
        T pictures a sample (B,T,H,W) or (B,K,T,H,W).

    Raises:
        TypeError, ValueError: an argument that cannot work; before the model runs where it can be known.
        gradcam_fast.exceptions.LayerError: the layer did not run, the score does not depend on it, or its output is no
            spatial map of the images.
        gradcam_fast.exceptions.NoLayerFound: no layer was named and none can be explained.

    Warns:
        UserWarning: every gradient at the layer is zero; if the layer was named, the warning names one that has a
        gradient. This is checked on the CPU only, because elsewhere the host would have to wait for the device; check
        ``reason`` there. Or the layer that was found only cuts the images into patches, because the tokens behind it
        cannot be read.

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
        model,
        layer=layer,
        method=method,
        size=size,
        normalize=normalize,
        relu=relu,
        output=output,
        tokens=tokens,
        call=call,
    )
    return explainer(images, target, topk)
