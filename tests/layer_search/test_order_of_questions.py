"""The layer found depends on images, target and output, and on no question before."""

import itertools
from functools import partial

import pytest
import torch
from support import heads
from support.heads import Coarse, Features
from support.networks import PatchNet
from torch import nn

from gradcam_fast import explain, targets

IMAGES = torch.rand(3, 3, 32, 32)

# What is asked of coarse classes 0 and 1 and fine classes 2 to 4 in one tensor, and the layer.
QUESTIONS = {
    "fine class": ({"target": 3}, "s4"),
    "coarse class": ({"target": 0}, "s2"),
    "both": ({"target": [[0, 3]]}, "s2"),
    "one for each image": ({"target": [0, 3, 4]}, "s2"),
    "fine classes": ({"target": [[2, 3]]}, "s4"),
    "highest": ({}, "s2"),
    "highest three": ({"topk": 3}, "s2"),
    "fine score": ({"target": lambda out: out[:, 2:].sum(1)}, "s4"),
    "coarse score": ({"target": lambda out: out[:, :2].sum(1)}, "s2"),
    "fine output": ({"output": lambda out: out[:, 2:], "target": 1}, "s4"),
    "coarse output": ({"output": lambda out: out[:, :2], "target": 1}, "s2"),
}


def layer_of(model, images=IMAGES, **choices):
    return explain(model, images, relu=False, **choices).layer


@pytest.mark.parametrize("order", list(itertools.permutations(("fine class", "coarse class", "both"))), ids=str)
def test_no_order_of_three_questions_changes_an_answer(order):
    model = Coarse()
    for name in (*order, *order):
        choices, layer = QUESTIONS[name]
        assert layer_of(model, **choices) == layer


@pytest.mark.parametrize("first", QUESTIONS)
def test_no_question_changes_the_answer_to_another(first):
    model = Coarse()
    for name in (first, *QUESTIONS, first):
        choices, layer = QUESTIONS[name]
        assert layer_of(model, **choices) == layer, name


def test_neither_the_class_predicted_nor_the_batch_decides():
    model = Coarse()
    for bias in (100, -100):
        nn.init.constant_(model.coarse.bias, bias)
        for count in (1, 2, 3):
            assert layer_of(model, IMAGES[:count]) == "s2"
            assert layer_of(model, IMAGES[:count], target=4) == "s4"


@pytest.mark.parametrize(
    "target",
    [
        targets.finer(),
        targets.finer(rivals=1),
        targets.finer(weights="softmax"),
        targets.finer(3, rivals=2),
        targets.finer([3, 4], rivals=1),
    ],
)
def test_neither_do_the_rivals_of_a_class(target):
    model = Coarse()
    for bias in (100, -100, 0):
        nn.init.constant_(model.coarse.bias, bias)
        for count in (1, 3):
            assert layer_of(model, IMAGES[:count], target=target) == "s2"
        assert layer_of(model, target=4) == "s4"


def test_rivals_that_are_listed_decide():
    model = Coarse()
    assert layer_of(model, target=targets.finer(3, rivals=[2, 4])) == "s4"
    assert layer_of(model, target=targets.finer(3, rivals=[0, 4])) == "s2"
    assert layer_of(model, target=targets.finer(rivals=[2, 4])) == "s2"


@pytest.mark.parametrize(
    "join",
    [
        lambda coarse, fine: {"logits": torch.cat([coarse, fine], 1)},
        lambda coarse, fine: torch.cat([coarse, fine], 1)[..., None, None],
    ],
)
def test_the_rivals_of_a_class_do_not_decide_in_outputs_that_hold_the_logits(join):
    assert layer_of(Coarse(join), target=targets.finer()) == "s2"


def test_frozen_parameters_do_not_decide():
    model = Coarse().requires_grad_(False)
    assert [layer_of(model, **QUESTIONS[name][0]) for name in ("fine class", "both", "fine class")] == [
        "s4",
        "s2",
        "s4",
    ]


class Pick:
    """A callable object that picks one head."""

    def __init__(self, head):
        self.head = head

    def __call__(self, out):
        return out[self.head]


CHOSEN = {}
WAYS = {
    "closure": lambda head: lambda out: out[head],
    "object": Pick,
    "partial": lambda head: partial(lambda key, out: out[key], head),
    "global": lambda head: CHOSEN.update(head=head) or (lambda out: out[CHOSEN["head"]]),
}


@pytest.mark.parametrize("order", [("coarse", "fine"), ("fine", "coarse")])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("asked", ["output", "target"])
def test_the_way_a_head_is_picked_does_not_decide(way, order, asked):
    model = Coarse(lambda coarse, fine: {"coarse": coarse, "fine": fine})
    for head in (*order, *order):
        pick = WAYS[way](head)
        choices = {"output": pick, "target": 1} if asked == "output" else {"target": lambda out, p=pick: p(out)[:, 1]}
        assert layer_of(model, **choices) == {"coarse": "s2", "fine": "s4"}[head]


@pytest.mark.parametrize("order", [1, -1])
def test_features_and_predictions_of_one_tensor_are_told_apart(order):
    model, reference = Features("maps"), torch.randn(16)
    questions = [
        (lambda maps: maps.mean((2, 3)) @ reference, "trunk"),
        (lambda maps: maps[:, 3].mean((1, 2)), "trunk.0"),
    ][::order]
    for score, layer in (*questions, *questions):
        assert layer_of(model, target=score) == layer


def count_runs(model):
    runs = []
    model.register_forward_pre_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    return runs


def test_questions_that_were_asked_before_take_one_forward_in_any_order():
    model = Coarse()
    for name in QUESTIONS:
        layer_of(model, **QUESTIONS[name][0])
    runs = count_runs(model)
    for name in (*QUESTIONS, *reversed(QUESTIONS)):
        runs.clear()
        layer_of(model, **QUESTIONS[name][0])
        assert len(runs) == 1, name


class Recording(nn.Module):
    """Notes whether there is a graph behind each stage."""

    def __init__(self, model):
        super().__init__()
        self.model, self.graphs = model, []
        for stage in ("s2", "s4"):
            getattr(model, stage)[0].register_forward_hook(lambda *_: self.graphs.append(torch.is_grad_enabled()))

    def forward(self, images):
        self.graphs.clear()
        return self.model(images)


def test_a_graph_begins_before_the_layer_only_where_a_head_before_it_needs_one():
    of_one_part = Recording(Coarse(lambda coarse, fine: fine)).eval()
    of_two = Recording(Coarse()).eval()
    for _ in range(2):
        assert layer_of(of_one_part, target=1) == "model.s4" and layer_of(of_two, target=3) == "model.s4"
    assert of_one_part.graphs == [False, False] and of_two.graphs == [False, True]


class Residual(nn.Module):
    """Returns the features behind ten residual blocks, and their mean; with a norm, or without."""

    def __init__(self, norm):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.blocks = nn.ModuleList(heads.ResidualBlock(8) for _ in range(10))
        self.norm, self.graphs = nn.GroupNorm(2, 8) if norm else nn.Identity(), []
        self.eval()

    def forward(self, images):
        self.graphs.append([])
        maps = self.stem(images)
        for block in self.blocks:
            maps = block(maps)
            self.graphs[-1].append(torch.is_grad_enabled())
        maps = self.norm(maps)
        return maps, maps.mean((2, 3))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("member", [0, 1])
def test_features_of_a_deep_trunk_need_no_graph_of_the_trunk(norm, member):
    torch.manual_seed(0)
    model, reference = Residual(norm), torch.randn(8)

    def score(out):
        return (out[1] if member else out[0].mean((2, 3))) @ reference

    for _ in range(3):
        assert layer_of(model, target=score) == ("norm" if norm else "blocks.9")
    trial, *explanations = model.graphs
    assert all(trial) and len(explanations) == 3
    assert all(sum(graphs) <= 2 for graphs in explanations)  # the last sum is a part of the output: what it adds


def test_of_one_part_no_signature_is_computed(monkeypatch):
    from gradcam_fast._layer_search import memory

    models = [PatchNet(1), Coarse(lambda coarse, fine: fine)]
    monkeypatch.setattr(memory, "signature", None)
    for model in models:
        for choices in ({}, {"target": 2}, {"topk": 2}):
            layer_of(model, **choices)
            layer_of(model, **choices)
