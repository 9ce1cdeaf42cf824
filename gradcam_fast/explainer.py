"""The public API: checks the arguments, captures activations and gradients, calls the op, returns an Explanation."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ._capture.capture import capture
from ._capture.image_selection import check_when, empty_results, rows_of_samples, select_images
from ._capture.request import Needs, Request
from ._capture.scores import check_target
from ._labels import Labels
from ._layer_search.asked_layers import capture_anew, capture_asked, of_one_input
from ._layer_search.memory import known_patch_tokens
from ._layout.feature_layout import ImageGeometry, check_tokens
from ._model.graph_break import runs_eagerly
from ._model.inputs import ImageAxes, check_inputs, check_values, unwrap_model
from ._model.target_layer import TargetLayer, check_call, resolve_layers
from ._model.undo import leaves_no_trace, outside_inference_mode
from ._model.warning import LOG, warn_caller
from ._photo_input import PhotoInput
from .explanation import Explanation
from .methods.choices import Choices
from .ops.arguments import SCALES, check_choice, check_relu, check_size
from .ops.heatmaps import gradients_vanished, heatmaps, heatmaps_of_several

if TYPE_CHECKING:
    from torch import Tensor

    from ._capture.capture import Capture
    from ._cuda_graph.cache import GraphCache
    from ._model.inputs import Inputs, Taken
    from .compiled import CompiledExplainer
    from .methods.choices import Progress
    from .probabilities import Rule
    from .types import Call, HeatmapSize, Images, Layer, Names, Output, Target, Tokens, When

__all__ = ["Explainer", "explain"]


class Explainer:
    """A model together with the choices of how to explain it; call it with images.

    Args:
        model: any ``nn.Module`` on any device, or a pipeline of transformers with one. In training mode dropout and
            batch-norm act as they do in training, and the buffers of modules in training mode (batch-norm's running
            statistics) stay as they are. A training step in another thread during the call keeps its own updates of
            them.
        layer: dotted name, module, or a list of these (the mean of their maps); None finds the last spatial feature
            map through which all of the score's dependence on the image goes (or the last maps of all branches
            together) and behind which channels are mixed, by one trial run for each model, image size, and part of the
            model's output that is explained. The choice depends on the images, the target and the output alone.
        method: ``gradcam``, ``gradcam++``, ``xgradcam``, ``hirescam``, ``elementwise`` or ``layercam``;
            formulas and papers in :func:`gradcam_fast.reference.raw_map`. Or ``ablation``, ``reciprocam``,
            ``scorecam``, ``eigencam`` or ``eigengradcam`` of :mod:`gradcam_fast.methods`. All of these but the last
            work without a gradient; if the model's output has none, the layer must be named. The first three run the
            model many times, or once where only pooling and a linear layer follow (not ``scorecam``), and need it in
            eval mode.
        size: (H,W) of the heatmaps in pixels, or one integer for all sides; None = the images' own size; "original" =
            the size of the photos that were given, with 0 where the model saw nothing.
        normalize: ``minmax`` (each map to [0,1]), ``max`` (x / max), ``none``, or ``signed``: x / max(|x|) in [-1,1],
            without the ReLU, so that negative values speak against the class.
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
        smooth: ``eigen`` takes the first principal component of the weighted channels instead of their sum, and
            ``augment`` the mean of the heatmaps of six copies of the images, some mirrored, darker or brighter (as
            ``eigen_smooth`` and ``aug_smooth`` of pytorch-grad-cam); ``noise`` averages the gradients over noisy copies
            (SmoothGrad; with ``gradcam++`` Smooth Grad-CAM++). Or a tuple of these; None does not smooth.
        channels: for ``scorecam``, how many channels of each image are run: those of the largest range of values. None
            runs all that are not constant.
        chunk: how many changed copies of images run at once at most (or one of each image, of ``augment`` and
            ``noise``), which bounds the memory; None for what is fast on the device.
        samples, sigma, seed: of ``noise``: how many noisy copies (8), the noise's deviation as a share of each image's
            range (0.15), and the seed (0) of its generator, which is its own.
        progress: for methods that run the model many times: a callable that takes the numbers of runs done and of all
            runs, or True to show them on standard error.
        preprocess: how photos become the model's input, whatever :meth:`gradcam_fast.Preprocess.of` takes: then paths,
            PIL images, arrays (H,W,C), uint8 tensors and lists of these may be explained, and the explanation keeps the
            photos and their boxes. Floating tensors are inputs as they are. None: models of timm and pipelines of
            transformers bring their own.
        names: the names of the classes: a list, a dict, a file, torchvision's weights or a model
            (:func:`gradcam_fast.class_names.class_names`); None takes those that the model has.
        probabilities: what the outputs are: ``softmax`` (logits of one class in N), ``sigmoid`` (logits of independent
            labels), ``given`` (probabilities), None (neither) or ``auto``, which decides where it is sure:
            :mod:`gradcam_fast.probabilities`. Only ``Explanation.probabilities`` and pictures depend on it.

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
        size: HeatmapSize | None = None,
        normalize: str = "minmax",
        relu: bool = True,
        output: Output | None = None,
        tokens: Tokens = "auto",
        call: Call = None,
        cuda_graph: bool = False,
        when: When | None = None,
        smooth: str | Sequence[str] | None = None,
        channels: int | None = None,
        chunk: int | None = None,
        samples: int | None = None,
        sigma: float | None = None,
        seed: int | None = None,
        progress: Progress = False,
        preprocess: Any = None,
        names: Names = None,
        probabilities: Rule = "auto",
    ) -> None:
        self._arguments = {name: value for name, value in locals().items() if name not in ("self", "model")}
        self._given, self._model = model, unwrap_model(model)
        self._photos = PhotoInput(self._model, preprocess, size, given=model)
        self._labels = Labels(self._model, names, probabilities)
        self._choices = Choices(method, smooth, channels, chunk, progress, samples, sigma, seed)
        check_choice("normalize", normalize, SCALES)
        check_relu(relu)
        self._tokens = check_tokens(tokens)
        if output is not None and not callable(output):
            raise TypeError(f"output={output!r} is not callable; give a function that picks the logits")
        self._normalize, self._relu = normalize, relu and normalize != "signed"
        self._axes = ImageAxes(self._model)
        self._size = None if size is None or size == "original" else check_size(size, self._axes.rank)
        self._output = output
        self._call = check_call(call)
        self._layers = resolve_layers(self._model, layer, call)
        # Layers that were explained at a call that was found, which their names alone do not tell.
        self._at_earlier_calls: set[str] = set()
        self._when = check_when(when, cuda_graph=cuda_graph)
        self._needs = Needs()
        if not self._choices.only_op:
            self._needs = self._check_method(cuda_graph)
        # Made for the first batch without any gradient at the named layers.
        self._advice: str | None = None
        self._graphs = self._new_graph_cache() if cuda_graph else None

    @runs_eagerly
    @leaves_no_trace
    def __call__(self, images: Images, target: Target = None, topk: int | None = None) -> Explanation:
        """Explain a batch; see :func:`gradcam_fast.explain` for the arguments."""
        return self._answer(images, target, topk, self._explain_request)

    def _answer(
        self, images: Images, target: Target, topk: int | None, explain_request: Callable[[Request], Explanation]
    ) -> Explanation:
        """The explanation of images or photos, with its names and photos."""
        start = time.perf_counter() if LOG.isEnabledFor(logging.DEBUG) else None
        photos = self._photos.read(images)
        request = self._request(images if photos is None else photos.images, target, topk)
        check_values(request.images)
        explanation = explain_request(request)
        if start is not None:
            duration = 1000 * (time.perf_counter() - start)
            # Of an accelerator this is the time until all work is queued.
            LOG.debug("explained %d images at %s in %.1f ms", request.geometry.batch, explanation.layer, duration)
        explanation = self._labels.added_to(explanation, target, request.geometry.size)
        return explanation if photos is None else photos.added_to(explanation)

    def _explain_request(self, request: Request) -> Explanation:
        if "augment" in self._choices.smoothings:
            from .methods.augment import explain_augmented

            at_once = self._choices.copies_at_once(request.images.device)
            return explain_augmented(self._explain, request, images_at_once=at_once, normalize=self._normalize)
        return self._explain(request) if self._graphs is None else self._graphs(request)

    def __repr__(self) -> str:
        """The model, the layer and the choices that were made."""
        layer = "found automatically" if self._layers is None else ", ".join(layer.name for layer in self._layers)
        choices = f"method {self._choices.method}, normalize {self._normalize}"
        return f"Explainer({type(self._model).__name__}, layer {layer}, {choices}{self._photos}{self._labels})"

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
                One element of each tensor in host memory is compared, so that writes through ``.data``, too, are
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
    def output(self) -> Output | None:
        """The function that picks the logits from what the model returns."""
        return self._output

    def probability_rule(self, outputs: int) -> str | None:
        """What the model's outputs per image are: ``Explanation.probability_rule``."""
        return self._labels.rule(outputs)

    def replace(self, model: nn.Module | None = None, **choices: Any) -> Explainer:
        """An explainer with the same choices but these.

        Example:
            >>> import torch, gradcam_fast
            >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
            >>> explainer = gradcam_fast.Explainer(model, method="layercam", size=32)
            >>> other = explainer.replace(layer="0")  # layercam, 32 pixels
        """
        return Explainer(self._given if model is None else model, **{**self._arguments, **choices})

    @property
    def eager_because(self) -> str | None:
        """Why the last call with ``cuda_graph=True`` ran eagerly; None if it, or the next call like it, is replayed."""
        return None if self._graphs is None else self._graphs.eager_because

    def _check_method(self, cuda_graph: bool) -> Needs:
        """What has to be captured for a method that is not the op's alone."""
        from .methods.evidence import method_of

        if cuda_graph:
            named = f"smooth={self._choices.smooth!r}" if self._choices.smooth else f"method={self._choices.method!r}"
            raise ValueError(
                f"both {named} and cuda_graph=True were given, and it cannot be recorded; give one of them"
            )
        method = method_of(self._choices.method)
        return Needs() if method is None else method.needs

    def _new_graph_cache(self) -> GraphCache:
        # Imported here, because few programs need it.
        from ._cuda_graph.cache import GraphCache

        return GraphCache(self._model, self._layers, self._explain, self._explain_at)

    @leaves_no_trace
    def _request(self, images: Images, target: Target = None, topk: int | None = None) -> Request:
        axes = self._axes
        inputs, taken = check_inputs(self._model, axes, images, _try_inputs)
        batch = inputs.images
        patch_tokens = known_patch_tokens(self._model, batch)
        sides = axes.sides(batch)[:: -1 if taken.transposed else 1]
        # Rows of features (B,L,F), each of which is a token.
        of_rows = not axes.channels and batch.dim() == 3
        geometry = ImageGeometry(
            batch.shape[0],
            sides,
            ((1,),) if of_rows else axes.patches,
            patch_tokens,
            transposed=taken.transposed,
            channels_last=of_rows,
        )
        if len(inputs.args) + len(inputs.kwargs) > 1:
            alike = sum(images.shape == batch.shape for images in inputs.all_images.values())
            geometry = replace(geometry, inputs=alike)
        if (axis := axes.picture_axis(batch)) is not None:
            geometry = replace(geometry, pictures=batch.shape[axis], picture_axis=axis)
        if isinstance(target, (str, list, tuple)):
            from .class_names import without_names

            target = without_names(target, self._model, self._labels.names)
        target = check_target(target, topk, geometry.batch)
        return Request(inputs, geometry, target, topk, self._output, self._tokens, self._when, self._needs)

    @leaves_no_trace
    def _capture(self, request: Request) -> tuple[Request, Capture]:
        """The capture, and the request about the images explained: ``call=`` may name others than the first."""
        return capture_asked(self._model, request, self._layers, self._call)

    def _explain(self, request: Request) -> Explanation:
        """The explanation from the layers that were named or are found."""
        request, captured = self._capture(request)
        if self._layers is None or self._call is None:
            for calls in captured.calls:
                if calls.layer.call is not None:
                    self._at_earlier_calls.add(calls.layer.name)
        explanation = self._explanation(captured, request, may_wait=True)
        empty = self._needs.gradients and _has_no_gradient(captured, explanation)
        if empty and captured.layer_remembered:
            captured = capture_anew(self._model, request)
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
                f"the gradient of the score at layer {', '.join(map(repr, captured.layers))} {problem}; {advice}",
                model=self._model,
            )
        return explanation

    def _explain_at(self, request: Request, layers: Sequence[TargetLayer]) -> Explanation:
        """The explanation from these layers; the host never waits for the device."""
        asks = request.geometry.pictures is not None or request.takes_several_images
        if asks or any(layer.name in self._at_earlier_calls for layer in layers):
            from ._cuda_graph.checks import CannotRecord

            raise CannotRecord("which pictures a layer's maps are of is asked of the model, and the host waits for it")
        return self._explanation(capture(self._model, request, layers), request, may_wait=False)

    def _explanation(self, captured: Capture, request: Request, *, may_wait: bool) -> Explanation:
        with outside_inference_mode(), torch.no_grad():
            method = self._choices.method
            if not self._choices.only_op and (captured.selected is None or len(captured.selected)):
                captured, method = self._evidence(captured, request)
            heatmap, raw_min, raw_max, valid, codes = self._results(captured, request, method, may_wait=may_wait)
            if request.geometry.transposed:
                heatmap = heatmap.transpose(-1, -2).contiguous()
        layer = captured.layers[0] if len(captured.layers) == 1 else captured.layers
        return Explanation(
            heatmap,
            captured.logits,
            captured.target,
            captured.scores,
            raw_min,
            raw_max,
            valid,
            layer,
            codes,
            signed=self._normalize == "signed",
        )

    def _evidence(self, captured: Capture, request: Request) -> tuple[Capture, str]:
        """The capture with what the op makes the method's heatmaps of, and the op's method for it."""
        from .methods.evidence import evidence_of
        from .methods.method import MethodInput

        def capture_again(request: Request) -> Capture:
            layers = [calls.layer for calls in captured.calls]
            return of_one_input(self._model, request, capture(self._model, request, layers))

        evidence = evidence_of(MethodInput(self._model, request, captured, self._choices, capture_again))
        return replace(captured, activations=evidence.activations, gradients=evidence.gradients), evidence.method

    def _results(
        self, captured: Capture, request: Request, method: str, *, may_wait: bool
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
            method=method,
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
    size: HeatmapSize | None = None,
    normalize: str = "minmax",
    relu: bool = True,
    output: Output | None = None,
    tokens: Tokens = "auto",
    call: Call = None,
    smooth: str | Sequence[str] | None = None,
    channels: int | None = None,
    chunk: int | None = None,
    samples: int | None = None,
    sigma: float | None = None,
    seed: int | None = None,
    progress: Progress = False,
    preprocess: Any = None,
    names: Names = None,
    probabilities: Rule = "auto",
) -> Explanation:
    """Predict a batch and show where the model looked: one forward, and per image and class one heatmap.

    The first call for a model and image size makes a trial run to find the layer, on one image if the model can: in the
    time of at most three predictions, and with the memory of at most 1.5 training steps. Name a ``layer`` to avoid it.
    For a transformer, one more trial run finds out which tokens are patches, and whether they are in the order of the
    image, also for a named layer.
    Where a sample is several pictures, or a layer may have run on several images, up to two more trial runs find out
    which map is of which.

    Args:
        model: any ``nn.Module``, or a pipeline of transformers; it is left exactly as it was.
        images: (B,C,H,W) floating tensor on the model's device, prepared as the model expects it; (C,H,W) is a batch
            of one. A tuple is passed as ``model(*images)``, a dict as ``model(**images)``; the first 4-D tensor counts:
            it is the one explained, and the layer is found among those that see it.
            With ``preprocess``, photos: a path, a PIL image, an array (H,W,C), a uint8 tensor, or a list of these.
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
        layer, method, size, normalize, relu, output, tokens, call: see :class:`gradcam_fast.Explainer` (and its
            ``cuda_graph`` and ``when``).
        smooth, channels, chunk, samples, sigma, seed, progress, preprocess, names, probabilities: likewise.

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
            gradient. This is checked on the CPU only, because elsewhere the host would have to wait for the device;
            check ``reason`` there. Or the layer that was found only cuts the images into patches, because the tokens
            behind it cannot be read.

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
        smooth=smooth,
        channels=channels,
        chunk=chunk,
        samples=samples,
        sigma=sigma,
        seed=seed,
        progress=progress,
        preprocess=preprocess,
        names=names,
        probabilities=probabilities,
    )
    return explainer(images, target, topk)
