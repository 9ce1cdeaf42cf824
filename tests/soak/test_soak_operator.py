"""The operator agrees with its reference for random shapes, layouts, types, options and threads."""

import random

import pytest
import torch
from support.op_cases import LAYOUTS, assert_as_expected, expected_results, inputs
from support.soak import numbers
from support.tolerances import SAME_INPUTS

from gradcam_fast import cam
from gradcam_fast.ops.arguments import METHODS, NORMALIZATIONS

pytestmark = pytest.mark.slow

# Of the operator in each case: the same values in several layouts, on several numbers of threads.
CALLS = 8
# For several processes to share.
PARTS = 20
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
    """The maps, the heatmap's size and the options of a case, and the layouts and threads of its calls."""
    chance = random.Random(number)
    torch.manual_seed(number)
    shape = (chance.choice([1, 1, 2, 3]), chance.choice([0, 0, 1, 3]), channels(chance), side(chance), side(chance))
    dtype = chance.choice([torch.float32, torch.float16, torch.bfloat16])
    activations, gradients = inputs(shape, dtype)
    if dtype != torch.float16:
        gradients = gradients * 10.0 ** chance.choice([0, 0, 0, -4, 4])
    expanded = chance.choice([None, None, None, *EXPANDED])
    if expanded:
        gradients = EXPANDED[expanded](gradients)
    options = {
        "method": chance.choice(METHODS),
        "normalize": chance.choice(NORMALIZATIONS),
        "relu": chance.random() < 0.5,
    }
    ways = list(LAYOUTS)
    calls = [(chance.choice(ways), chance.choice(ways), chance.choice([1, 1, 2, 3, 7])) for _ in range(CALLS)]
    if expanded:  # also as it is, without memory for its values
        calls[::2] = [(layout, None, threads) for layout, _, threads in calls[::2]]
    return activations, gradients, (side(chance), side(chance)), options, calls


@pytest.mark.parametrize("part", range(PARTS))
def test_the_operator_agrees_with_the_reference(part):
    for number in numbers(short=300, full=10**6 // CALLS)[part::PARTS]:
        activations, gradients, size, options, calls = one_case(number)
        tolerance = SAME_INPUTS[activations.dtype]
        expected = expected_results(activations, gradients, size, tolerance, may_cancel=True, **options)
        for of_activations, of_gradients, threads in calls:
            laid_out = gradients if of_gradients is None else LAYOUTS[of_gradients](gradients.contiguous())
            torch.set_num_threads(threads)
            try:
                assert_as_expected(cam(LAYOUTS[of_activations](activations), laid_out, size, **options), expected)
            except AssertionError as error:
                facts = f"{tuple(gradients.shape)}, {gradients.dtype}, {size}, {options}"
                ways = f"{of_activations} and {of_gradients} on {threads} threads"
                raise AssertionError(f"SOAK_SEED={number}: {facts}, {ways}: {error}") from error
            finally:
                torch.set_num_threads(1)
