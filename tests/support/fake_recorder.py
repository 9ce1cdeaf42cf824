"""A recorder without a device: a replay runs the function again, into the memory that lay there from the recording.

So everything but the recording itself can be tested on a CPU. Knows nothing of models or keys.
"""

from contextlib import nullcontext

import torch

import gradcam_fast
from gradcam_fast._capture.containers import map_tensors
from gradcam_fast._cuda_graph.cache import GraphCache


class StandIn:
    """Like a CUDA graph it never raises: what it can no longer run it answers with NaN."""

    def __init__(self, device):
        self.recordings, self.replays = [], 0

    @staticmethod
    def refuses(device):
        return None

    def aside(self):
        return nullcontext()

    turn = aside

    def settle(self):
        pass

    def record(self, function):
        still = copied(function())

        def again():
            self.replays += 1
            try:
                fresh = tensors(function())
            except Exception:
                fresh = [torch.zeros_like(each).fill_(torch.nan if each.is_floating_point() else 0) for each in memory]
            for each, value in zip(memory, fresh, strict=True):
                each.copy_(value) if each.shape == value.shape and each.dtype == value.dtype else each.zero_()

        memory = tensors(still)
        self.recordings.append(still)
        return still, again


def tensors(explanation):
    """All tensors of an explanation, those of its logits last."""
    maps = (explanation.heatmap, explanation.score, explanation.raw_min, explanation.raw_max, explanation.valid)
    found = [*maps] if explanation.target is None else [*maps, explanation.target]
    map_tensors(explanation.logits, lambda each: found.append(each) or each)
    return found


def copied(explanation):
    parts = {name: value.clone() for name, value in vars(explanation).items() if isinstance(value, torch.Tensor)}
    parts["logits"] = map_tensors(explanation.logits, torch.Tensor.clone)
    return gradcam_fast.Explanation(**vars(explanation) | parts)


def graphed(model, recorder=StandIn, **choices):
    """An explainer whose graphs are made by the stand-in."""
    explainer = gradcam_fast.Explainer(model, cuda_graph=True, **choices)
    explainer._graphs = GraphCache(
        explainer.model, explainer._layers, explainer._explain, explainer._explain_at, recorder
    )
    return explainer


def recordings(explainer):
    """How many recordings the explainer's present recorder has made."""
    recorder = explainer._graphs._recorder
    return 0 if recorder is None else len(recorder.recordings)


def replays(explainer):
    """How many replays there were of these."""
    recorder = explainer._graphs._recorder
    return 0 if recorder is None else recorder.replays
