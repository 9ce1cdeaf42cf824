"""Which calls of an explainer are recorded and replayed: known by their key, made anew for a model that has changed.

Knows nothing of how an explanation is made, or of what a recording is. What cannot be recorded is explained eagerly,
and says why.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch

from .._model.target_layer import resolve_layers
from ..explanation import Explanation
from .checks import CannotRecord
from .fingerprint import fingerprint, versions, why_unfit
from .recorder import CudaRecorder
from .replay import Replay, can_be_padded, key_of, padded_size

if TYPE_CHECKING:
    from .._capture.capture import Request
    from ..explainer import Explainer
    from .recorder import Recorder

__all__ = ["Graphs"]

# As many as there are sizes of batches from 1 to 512; and the keys of some more calls.
RECORDINGS = 32
ASKED = 64


class Graphs:
    """The recordings of one explainer.

    A call is recorded when its like comes for the second time, so that what comes once (a last batch, a function
    written in place) costs nothing. After new modes, hooks, modules or memory of the model everything is recorded anew.

    Attributes:
        eager_because: why the last call was explained eagerly; None if it was replayed, or will be the next time.
    """

    def __init__(self, recorder: type[Recorder] = CudaRecorder) -> None:
        self.eager_because: str | None = None
        self._recorder_for = recorder
        self._recorder: Recorder | None = None
        self._lock = threading.Lock()
        self._said: set[str] = set()
        self._asked: OrderedDict[Any, None] = OrderedDict()
        # A replay, or why there is none.
        self._known: OrderedDict[Any, Replay | str] = OrderedDict()
        # Until an image turns out to change when others follow it.
        self._pads = True
        self._fingerprint: list[Any] = []

    def explain(self, explainer: Explainer, request: Request) -> Explanation:
        """What ``explainer.explained(request)`` returns, from a replay if there is one."""
        reason = self._recorder_for.refuses(request.images.device)
        if reason is None and request.geometry.batch:
            pads = self._pads and can_be_padded(request)
            try:
                key = key_of(request, padded_size(request.geometry.batch) if pads else request.geometry.batch)
            except TypeError as error:
                reason = f"the inputs cannot be compared with those of other calls ({error})"
            else:
                with self._lock, torch.inference_mode(False), torch.no_grad():
                    answer, reason = self._answer(explainer, request, key)
                if answer is not None:
                    self._say(reason)
                    return answer
        self._say(reason)
        return explainer.explained(request)

    def _say(self, reason: str | None) -> None:
        self.eager_because = reason
        if reason is not None and reason not in self._said:
            self._said.add(reason)
            warnings.warn(f"cuda_graph=True, but this runs eagerly: {reason}", RuntimeWarning, stacklevel=4)

    def _answer(self, explainer: Explainer, request: Request, key: Any) -> tuple[Explanation | None, str | None]:
        """The answer, unless it has to be an eager one that is not at hand; and why it is eager, if it stays so."""
        known = self._known.get(key)
        if isinstance(known, Replay):
            self._known.move_to_end(key)
            if known.takes(request):
                answer = self._replayed(explainer, request, known)
                if answer is not None:
                    return answer, None
            elif fingerprint(explainer.model) == self._fingerprint:
                return None, None
        elif known is not None:
            if fingerprint(explainer.model) == self._fingerprint:
                return None, known
        elif key not in self._asked:
            self._asked[key] = None
            if len(self._asked) > ASKED:
                self._asked.popitem(last=False)
            return None, None
        return self._recorded(explainer, request, key)

    def _replayed(self, explainer: Explainer, request: Request, known: Replay) -> Explanation | None:
        """The answer, unless the model is no longer what was recorded."""
        assert self._recorder is not None
        with self._recorder.turn():
            known.fill(request)
            known.again()
            # Looked at while the device works; the memory it reads is there, whatever has become of the model.
            same = fingerprint(explainer.model) == self._fingerprint
            return known.explanation(request.geometry.batch) if same else None

    def _recorded(self, explainer: Explainer, request: Request, key: Any) -> tuple[Explanation, str | None]:
        model, device = explainer.model, request.images.device
        marks, before = fingerprint(model), versions(model)
        # What is wrong with the request is said here. What is wrong with the recording leaves this as the answer.
        answer = explainer.explained(request)
        reason = why_unfit(model, device)
        if reason is None and (fingerprint(model), versions(model)) != (marks, before):
            reason = "the model replaces its tensors, or writes to its buffers, in its forward"
        if marks != self._fingerprint:
            self._forget()
            self._fingerprint = marks
        if reason is not None:
            self._keep(key, reason)
            return answer, reason
        if self._recorder is None:
            self._recorder = self._recorder_for(device)
        try:
            known = self._record(self._recorder, explainer, request, answer, key[0])
        except Exception as error:
            reason = str(error) if isinstance(error, CannotRecord) else f"{type(error).__name__}: {error}"
            reason = reason.partition("\n")[0]
            self._keep(key, reason)
            return answer, reason
        self._keep(key_of(request, known.request.geometry.batch), known)
        return self._replayed(explainer, request, known) or answer, None

    def _record(
        self, recorder: Recorder, explainer: Explainer, request: Request, answer: Explanation, batch: int
    ) -> Replay:
        names = [answer.layer] if isinstance(answer.layer, str) else answer.layer
        places = explainer.layers or resolve_layers(explainer.model, names) or ()
        kind = request.images.device.type
        enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

        def explained(still: Request) -> Explanation:
            # Weights that were cast before are gone when the caller's autocast ends.
            with torch.autocast(kind, dtype, enabled, cache_enabled=False):
                return explainer.explained_at(still, places)

        known = Replay(request, batch, explained, recorder)
        # Does any other batch end here?
        if self._pads and can_be_padded(request) and padded_size(batch - 1) == batch:
            with recorder.aside(), recorder.turn():
                self._pads = known.keeps_images_apart()
            if not self._pads and batch != request.geometry.batch:
                known = Replay(request, request.geometry.batch, explained, recorder)
        return known

    def _keep(self, key: Any, known: Replay | str) -> None:
        self._settle()
        self._known[key] = known
        if len(self._known) > RECORDINGS:
            self._known.popitem(last=False)

    def _forget(self) -> None:
        self._settle()
        self._known.clear()
        self._recorder, self._pads = None, True

    def _settle(self) -> None:
        # Memory of a replay that is still running must not be given away.
        if self._recorder is not None:
            self._recorder.settle()
