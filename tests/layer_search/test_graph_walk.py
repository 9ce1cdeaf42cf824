"""A linear layer is told by its graph, however it is written; what does more, or less, is none."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcam_fast._layer_search.graph_walk import is_projection

LINEAR, DOWN, UP, GAIN = nn.Linear(6, 6), nn.Linear(6, 2), nn.Linear(2, 6), nn.Parameter(torch.randn(6))
TOKENS = torch.randn(2, 5, 6, requires_grad=True)
OTHERS = torch.randn(2, 5, 6, requires_grad=True)


def merged(tokens):
    return F.linear(tokens, LINEAR.weight + UP.weight @ DOWN.weight)


PROJECTIONS = {
    "linear": LINEAR,
    "linear, twice": lambda tokens: LINEAR(LINEAR(tokens)),
    "low-rank update": lambda tokens: LINEAR(tokens) + 0.5 * UP(DOWN(tokens)),
    "update merged into the weight": merged,
    "scaled by a parameter": lambda tokens: LINEAR(tokens) * GAIN,
    "product": lambda tokens: tokens @ LINEAR.weight,
    "heads": lambda tokens: LINEAR(tokens).unflatten(2, (2, 3)).transpose(1, 2),
    "of two maps": lambda tokens: LINEAR(tokens) + DOWN(OTHERS).repeat(1, 1, 3),
    "of joined tokens": lambda tokens: LINEAR(torch.cat([tokens[:, ::2], tokens[:, 1::2]], 1)),
}
NONE = {
    "residual": lambda tokens: tokens + LINEAR(tokens),
    "perceptron": lambda tokens: UP(F.gelu(DOWN(tokens))),
    "norm": lambda tokens: LINEAR(F.layer_norm(tokens, (6,))),
    "attention": lambda tokens: LINEAR((LINEAR(tokens) @ tokens.mT).softmax(2) @ tokens),
    "product of two maps": lambda tokens: LINEAR(tokens) @ tokens.mT,
    "gate": lambda tokens: LINEAR(tokens) * OTHERS,
    "scale": lambda tokens: tokens * GAIN,
    "position embedding": lambda tokens: tokens + GAIN,
    "parameters alone": lambda tokens: LINEAR(GAIN),
}


@pytest.mark.parametrize("name", PROJECTIONS)
@pytest.mark.parametrize("frozen", [False, True])
def test_products_with_parameters_are_projections(name, frozen):
    for parameter in (*LINEAR.parameters(), *DOWN.parameters(), *UP.parameters(), GAIN):
        parameter.requires_grad_(not frozen)
    assert is_projection(PROJECTIONS[name](TOKENS).grad_fn)


@pytest.mark.parametrize("name", NONE)
def test_whatever_else_happens_is_none(name):
    for parameter in (*LINEAR.parameters(), *DOWN.parameters(), *UP.parameters(), GAIN):
        parameter.requires_grad_()
    assert not is_projection(NONE[name](TOKENS).grad_fn)


def test_a_sum_doubled_many_times_is_walked_once():
    tokens = TOKENS
    for _ in range(60):
        tokens = tokens + tokens
    assert not is_projection(tokens.grad_fn)


def test_a_forward_of_thousands_of_operations_is_walked():
    projected = torch.nn.functional.linear(TOKENS, torch.nn.Parameter(torch.ones(8, TOKENS.shape[-1])))
    for _ in range(5000):
        projected = projected + 1
    assert is_projection(projected.grad_fn)
