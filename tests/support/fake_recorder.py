"""A recorder without CUDA graphs: a replay runs the function again and copies the results into the recorded tensors.

With it everything but the CUDA calls is tested on a CPU.
"""

from contextlib import nullcontext

import torch

import gradcam_fast
from gradcam_fast._capture.containers import map_tensors
from gradcam_fast._cuda_graph.cache import GraphCache


class FakeRecorder:
    """A replay never raises, as a CUDA graph's never does: if the function no longer runs, the results are NaN."""

    def __init__(self, device):
        self.recordings, self.replays = [], 0

    @staticmethod
    def unavailable_because(device):
        return None

    def side_stream(self):
        return nullcontext()

    exclusive_use = side_stream

    def wait_for_last_use(self):
        pass

    def record(self, function):
        recorded = copy_explanation(function())
        static_tensors = explanation_tensors(recorded)

        def replay():
            self.replays += 1
            try:
                results = explanation_tensors(function())
            except Exception:
                results = [
                    torch.zeros_like(tensor).fill_(torch.nan if tensor.is_floating_point() else 0)
                    for tensor in static_tensors
                ]
            for static, result in zip(static_tensors, results, strict=True):
                same_kind = static.shape == result.shape and static.dtype == result.dtype
                static.copy_(result) if same_kind else static.zero_()

        self.recordings.append(recorded)
        return recorded, replay


def explanation_tensors(explanation):
    """All tensors of an explanation, those of its logits last."""
    names = ("heatmap", "score", "raw_min", "raw_max", "valid", "reason_codes")
    tensors = [getattr(explanation, name) for name in names]
    if explanation.target is not None:
        tensors.append(explanation.target)
    map_tensors(explanation.logits, lambda tensor: tensors.append(tensor) or tensor)
    return tensors


def copy_explanation(explanation):
    fields = {name: value.clone() for name, value in vars(explanation).items() if isinstance(value, torch.Tensor)}
    fields["logits"] = map_tensors(explanation.logits, torch.Tensor.clone)
    return gradcam_fast.Explanation(**vars(explanation) | fields)


def graph_explainer(model, recorder=FakeRecorder, **choices):
    """An explainer with ``cuda_graph=True`` whose recordings are made by the fake recorder."""
    explainer = gradcam_fast.Explainer(model, cuda_graph=True, **choices)
    explainer._graphs = GraphCache(
        explainer.model, explainer._layers, explainer._explain, explainer._explain_at, recorder
    )
    return explainer


def count_recordings(explainer):
    """How many recordings the explainer's present recorder has made."""
    recorder = explainer._graphs._recorder
    return 0 if recorder is None else len(recorder.recordings)


def count_replays(explainer):
    """How often these recordings were replayed."""
    recorder = explainer._graphs._recorder
    return 0 if recorder is None else recorder.replays


def assert_same_explanation(explanation, expected):
    """The same layer, type of logits, dtypes and bits."""
    assert explanation.layer == expected.layer and type(explanation.logits) is type(expected.logits)
    pairs = list(zip(explanation_tensors(explanation), explanation_tensors(expected), strict=True))
    assert [one.dtype == other.dtype and torch.equal(one, other) for one, other in pairs] == [True] * len(pairs)
