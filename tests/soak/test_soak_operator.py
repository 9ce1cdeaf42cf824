"""The operator agrees with its reference for random shapes, layouts, types, options and threads."""

import random

import pytest
import torch
from support.op_cases import LAYOUTS, assert_agrees, inputs
from support.soak import numbers
from support.tolerances import SAME_INPUTS

from gradcam_fast.ops.arguments import METHODS, NORMALIZATIONS

pytestmark = pytest.mark.slow

EXPANDED = {
    "one gradient per channel": lambda maps: maps[..., :1, :1].expand(maps.shape),
    "one value for all": lambda maps: maps.flatten()[:1].view([1] * maps.dim()).expand(maps.shape),
}


def side(chance):
    # Around the lengths of vectors, and now and then those of large maps.
    return chance.choice([1, 2, 3, 7, 8, 9, 14, chance.randint(1, 20), chance.randint(1, 20), chance.randint(1, 64)])


def channels(chance):
    # Around the numbers of channels in a step and in a slab.
    return chance.choice([1, 2, 7, 8, 9, 16, chance.randint(1, 40), 63, 64, 65, 130])


def one_case(number):
    """The maps, the heatmap's size and the options of a case."""
    chance = random.Random(number)
    torch.manual_seed(number)
    shape = (chance.choice([1, 1, 2, 3]), chance.choice([0, 0, 1, 3]), channels(chance), side(chance), side(chance))
    dtype = chance.choice([torch.float32, torch.float16, torch.bfloat16])
    activations, gradients = inputs(shape, dtype)
    gradients = gradients * 10.0 ** chance.choice([0, 0, 0, -4, 4]) if dtype != torch.float16 else gradients
    activations = LAYOUTS[chance.choice(list(LAYOUTS))](activations)
    layout = chance.choice([*LAYOUTS, *EXPANDED])
    gradients = (LAYOUTS | EXPANDED)[layout](gradients)
    options = {
        "method": chance.choice(METHODS),
        "normalize": chance.choice(NORMALIZATIONS),
        "relu": chance.random() < 0.5,
    }
    return activations, gradients, (side(chance), side(chance)), options, chance.choice([1, 1, 2, 3, 7])


def test_the_operator_agrees_with_the_reference():
    for number in numbers(short=3000, full=10**6):
        activations, gradients, size, options, threads = one_case(number)
        torch.set_num_threads(threads)
        try:
            assert_agrees(activations, gradients, size, SAME_INPUTS[activations.dtype], **options)
        except AssertionError as error:
            facts = f"{tuple(gradients.shape)}, {gradients.dtype}, {size}, {options}, {threads} threads"
            raise AssertionError(f"SOAK_SEED={number}: {facts}: {error}") from error
        finally:
            torch.set_num_threads(1)
