"""The recorded explanations of one explainer: found by the request's key, recorded anew when the model has changed.

What cannot be recorded is explained eagerly, and the cache says why.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .._model.target_layer import TargetLayer, resolve_layers
from .._model.warning import warn_caller
from ..explanation import Explanation
from .checks import CannotRecord
from .fingerprint import fingerprint, unrecordable_because, versions
from .recorder import CudaRecorder
from .replay import Replay, can_be_padded, key_of, padded_size

if TYPE_CHECKING:
    from .._capture.capture import Request
    from .recorder import Recorder

__all__ = ["GraphCache"]

# As many as there are padded batch sizes from 1 to 512.
MAX_RECORDINGS = 32
# Keys of calls that came once.
MAX_SEEN_ONCE = 64


class GraphCache:
    """The recordings of one explainer; call it with a request to have it explained.

    A call is recorded when a call with the same key comes for the second time, so that what comes once (a last batch, a
    function written in place) costs nothing. After new modes, hooks, modules or memory of the model everything is
    recorded anew.

    Args:
        model: the module that runs.
        layers: those the caller named; None if they are found.
        explain: from a request to its explanation.
        explain_at: the same from given layers, without the host ever waiting for the device.
        recorder: makes recordings; replaced in tests.

    Attributes:
        eager_because: why the last call was explained eagerly; None if it was replayed, or will be the next time.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[TargetLayer] | None,
        explain: Callable[[Request], Explanation],
        explain_at: Callable[[Request, Sequence[TargetLayer]], Explanation],
        recorder: type[Recorder] = CudaRecorder,
    ) -> None:
        self.eager_because: str | None = None
        self._model, self._layers = model, layers
        self._explain, self._explain_at = explain, explain_at
        self._recorder_type = recorder
        self._recorder: Recorder | None = None
        self._lock = threading.Lock()
        self._warned: set[str] = set()
        self._seen_once: OrderedDict[Any, None] = OrderedDict()
        # By key: a recording, or why there is none.
        self._recordings: OrderedDict[Any, Replay | str] = OrderedDict()
        # False once an image's score has changed with the images behind it in the batch.
        self._pads = True
        self._fingerprint: list[Any] = []

    def __call__(self, request: Request) -> Explanation:
        """The explanation, from a recording if there is one."""
        reason = self._recorder_type.refuses(request.images.device)
        batch = request.geometry.batch
        if reason is None and batch:
            pads = self._pads and can_be_padded(request)
            try:
                key = key_of(request, padded_size(batch) if pads else batch)
            except TypeError as error:
                reason = f"the inputs cannot be compared with those of other calls ({error})"
            else:
                with self._lock, torch.inference_mode(False), torch.no_grad():
                    explanation, reason = self._replay_or_record(request, key)
                if explanation is not None:
                    self._set_reason(reason)
                    return explanation
        self._set_reason(reason)
        return self._explain(request)

    def _set_reason(self, reason: str | None) -> None:
        self.eager_because = reason
        if reason is not None and reason not in self._warned:
            self._warned.add(reason)
            warn_caller(f"cuda_graph=True, but this runs eagerly: {reason}", RuntimeWarning)

    def _replay_or_record(self, request: Request, key: Any) -> tuple[Explanation | None, str | None]:
        """The explanation, or None if it is to be made eagerly; and why calls with this key always run eagerly."""
        recording = self._recordings.get(key)
        if isinstance(recording, Replay):
            self._recordings.move_to_end(key)
            if recording.takes(request):
                explanation = self._replay(request, recording)
                if explanation is not None:
                    return explanation, None
            elif fingerprint(self._model) == self._fingerprint:
                return None, None
        elif recording is not None:
            if fingerprint(self._model) == self._fingerprint:
                return None, recording
        elif key not in self._seen_once:
            self._seen_once[key] = None
            if len(self._seen_once) > MAX_SEEN_ONCE:
                self._seen_once.popitem(last=False)
            return None, None
        return self._explain_and_record(request, key)

    def _replay(self, request: Request, recording: Replay) -> Explanation | None:
        """The explanation, or None if the model is no longer the one that was recorded."""
        assert self._recorder is not None
        with self._recorder.turn():
            recording.fill(request)
            recording.replay()
            # Compared while the device works; the recording keeps alive the memory that it reads.
            same = fingerprint(self._model) == self._fingerprint
            return recording.explanation(request.geometry.batch) if same else None

    def _explain_and_record(self, request: Request, key: Any) -> tuple[Explanation, str | None]:
        model, device = self._model, request.images.device
        marks, buffer_versions = fingerprint(model), versions(model)
        # The eager explanation raises what is wrong with the request, and is the answer if the recording fails.
        explanation = self._explain(request)
        reason = unrecordable_because(model, device)
        if reason is None and (fingerprint(model), versions(model)) != (marks, buffer_versions):
            reason = "the model replaces its tensors, or writes to its buffers, in its forward"
        if marks != self._fingerprint:
            self._forget()
            self._fingerprint = marks
        if reason is not None:
            self._keep(key, reason)
            return explanation, reason
        if self._recorder is None:
            self._recorder = self._recorder_type(device)
        try:
            recording = self._record(self._recorder, request, explanation, key[0])
        except Exception as error:
            reason = str(error) if isinstance(error, CannotRecord) else f"{type(error).__name__}: {error}"
            reason = reason.partition("\n")[0]
            self._keep(key, reason)
            return explanation, reason
        self._keep(key_of(request, recording.request.geometry.batch), recording)
        return self._replay(request, recording) or explanation, None

    def _record(self, recorder: Recorder, request: Request, explanation: Explanation, batch: int) -> Replay:
        names = [explanation.layer] if isinstance(explanation.layer, str) else explanation.layer
        layers = self._layers or resolve_layers(self._model, names) or ()
        device_type = request.images.device.type
        autocast, dtype = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)

        def explain(static_request: Request) -> Explanation:
            # Weights that autocast has cast before are freed when the caller's autocast ends.
            with torch.autocast(device_type, dtype, autocast, cache_enabled=False):
                return self._explain_at(static_request, layers)

        recording = Replay(request, batch, explain, recorder)
        # Other batch sizes are padded to this one only if the next smaller one is.
        if self._pads and can_be_padded(request) and padded_size(batch - 1) == batch:
            with recorder.aside(), recorder.turn():
                self._pads = recording.keeps_images_apart()
            if not self._pads and batch != request.geometry.batch:
                recording = Replay(request, request.geometry.batch, explain, recorder)
        return recording

    def _keep(self, key: Any, recording: Replay | str) -> None:
        self._settle()
        self._recordings[key] = recording
        if len(self._recordings) > MAX_RECORDINGS:
            self._recordings.popitem(last=False)

    def _forget(self) -> None:
        self._settle()
        self._recordings.clear()
        self._recorder, self._pads = None, True

    def _settle(self) -> None:
        # Memory of a replay that is still running must not be given away.
        if self._recorder is not None:
            self._recorder.settle()
