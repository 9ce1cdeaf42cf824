"""The recorded explanations of one explainer, by the key of the request; recorded again when the model has changed.

A request that cannot be recorded is explained eagerly, and the cache says why.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .._model.fingerprint import buffer_versions, fingerprint
from .._model.target_layer import TargetLayer, resolve_layers
from .._model.warning import warn_caller
from ..explanation import Explanation
from .checks import CannotRecord, unrecordable_because
from .recorder import CudaRecorder
from .replay import RecordedExplanation, can_be_padded, padded_size, request_key

if TYPE_CHECKING:
    from .._capture.request import Request
    from .recorder import Recorder

__all__ = ["GraphCache"]

# There are 32 padded batch sizes from 1 to 512.
MAX_RECORDINGS = 32
# How many keys are remembered that only one request has had so far.
MAX_KEYS_SEEN_ONCE = 64


class GraphCache:
    """The recordings of one explainer; call the cache with a request to get its explanation.

    The second request with the same key is recorded, so that requests that come only once (a last, smaller batch; a
    lambda as target) are not recorded for nothing. When modes, hooks, modules or memory addresses of the model have
    changed, all recordings are discarded.

    Args:
        model: the module that runs.
        layers: the layers that the caller named; None if they are to be found.
        explain: computes the explanation of a request.
        explain_at: the same at given layers; the host never waits for the device.
        recorder: makes the recordings; tests pass a fake one.

    Attributes:
        eager_because: why the last call was explained eagerly; None if it was replayed, or if the next call like it
            will be.
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
        self._reasons_warned_of: set[str] = set()
        self._keys_seen_once: OrderedDict[Any, None] = OrderedDict()
        # By key: the recording, or the reason why requests with this key cannot be recorded.
        self._recordings: OrderedDict[Any, RecordedExplanation | str] = OrderedDict()
        # False once a check has shown that the score of an image depends on the images behind it in the batch.
        self._may_pad = True
        self._fingerprint: list[Any] = []

    def __call__(self, request: Request) -> Explanation:
        """The explanation, from a recording if there is one."""
        reason = self._recorder_type.unavailable_because(request.images.device)
        batch = request.geometry.batch
        if reason is None and batch:
            pad = self._may_pad and can_be_padded(request)
            try:
                key = request_key(request, padded_size(batch) if pad else batch)
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
        if reason is not None and reason not in self._reasons_warned_of:
            self._reasons_warned_of.add(reason)
            warn_caller(f"cuda_graph=True, but this runs eagerly: {reason}", RuntimeWarning)

    def _replay_or_record(self, request: Request, key: Any) -> tuple[Explanation | None, str | None]:
        """The explanation, or None if this call must run eagerly; and the reason if all calls with this key must."""
        recording = self._recordings.get(key)
        if isinstance(recording, RecordedExplanation):
            self._recordings.move_to_end(key)
            if recording.accepts(request):
                explanation = self._replay(request, recording)
                if explanation is not None:
                    return explanation, None
            elif self._model_is_unchanged():
                return None, None
        elif recording is not None:
            if self._model_is_unchanged():
                return None, recording
        elif key not in self._keys_seen_once:
            self._keys_seen_once[key] = None
            if len(self._keys_seen_once) > MAX_KEYS_SEEN_ONCE:
                self._keys_seen_once.popitem(last=False)
            return None, None
        return self._explain_and_record(request, key)

    def _model_is_unchanged(self) -> bool:
        return fingerprint(self._model) == self._fingerprint

    def _replay(self, request: Request, recording: RecordedExplanation) -> Explanation | None:
        """The explanation, or None if the model has changed since it was recorded."""
        assert self._recorder is not None
        with self._recorder.exclusive_use():
            recording.copy_in(request)
            recording.replay()
            # The model is compared while the device works. Even if the model has replaced a tensor, the replay reads
            # valid memory: the recorder keeps it allocated.
            return recording.copy_out(request.geometry.batch) if self._model_is_unchanged() else None

    def _explain_and_record(self, request: Request, key: Any) -> tuple[Explanation, str | None]:
        """The explanation, and why requests with this key always run eagerly; None if a recording was made."""
        model, device = self._model, request.images.device
        fingerprint_before, versions_before = fingerprint(model), buffer_versions(model)
        # First eagerly: errors of the request are raised here, and if the recording fails, this is the result.
        explanation = self._explain(request)
        reason = unrecordable_because(model, device)
        if reason is None and (fingerprint(model), buffer_versions(model)) != (fingerprint_before, versions_before):
            reason = "the model's forward replaces its tensors or writes to its buffers"
        if fingerprint_before != self._fingerprint:
            self._discard_all()
            self._fingerprint = fingerprint_before
        if reason is not None:
            self._store(key, reason)
            return explanation, reason
        if self._recorder is None:
            self._recorder = self._recorder_type(device)
        try:
            recording = self._record(self._recorder, request, explanation, key[0])
        except Exception as error:
            reason = str(error) if isinstance(error, CannotRecord) else f"{type(error).__name__}: {error}"
            reason = reason.partition("\n")[0]
            self._store(key, reason)
            return explanation, reason
        self._store(request_key(request, recording.static_request.geometry.batch), recording)
        return self._replay(request, recording) or explanation, None

    def _record(
        self, recorder: Recorder, request: Request, explanation: Explanation, batch: int
    ) -> RecordedExplanation:
        names = [explanation.layer] if isinstance(explanation.layer, str) else explanation.layer
        layers = self._layers or resolve_layers(self._model, names) or ()
        device_type = request.images.device.type
        autocast, dtype = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)

        def explain(static_request: Request) -> Explanation:
            # Without autocast's cache: the weights it holds are freed when the caller's autocast ends.
            with torch.autocast(device_type, dtype, autocast, cache_enabled=False):
                return self._explain_at(static_request, layers)

        recording = RecordedExplanation(request, batch, explain, recorder)
        # Smaller batches are padded to this size only if the next smaller one is.
        if self._may_pad and can_be_padded(request) and padded_size(batch - 1) == batch:
            with recorder.side_stream(), recorder.exclusive_use():
                self._may_pad = recording.images_are_independent()
            if not self._may_pad and batch != request.geometry.batch:
                recording = RecordedExplanation(request, request.geometry.batch, explain, recorder)
        return recording

    def _store(self, key: Any, recording: RecordedExplanation | str) -> None:
        self._wait_for_last_replay()
        self._recordings[key] = recording
        if len(self._recordings) > MAX_RECORDINGS:
            self._recordings.popitem(last=False)

    def _discard_all(self) -> None:
        self._wait_for_last_replay()
        self._recordings.clear()
        self._recorder, self._may_pad = None, True

    def _wait_for_last_replay(self) -> None:
        # Called before recordings are discarded: the memory of a replay that still runs must not be freed.
        if self._recorder is not None:
            self._recorder.wait_for_last_use()
