"""Every operation on a gradient's blocks gives the numbers that PyTorch gives for the whole gradient, target by target.

Knows nothing of models or backward passes; test_sparing.py has those.
"""

import pytest
import torch

from gradcam_fast._sparse_backward import blocks
from gradcam_fast._sparse_backward.blocks import Block, Blocks, Outer, bundle, made, written_out
from gradcam_fast._sparse_backward.moves import reshaped
from gradcam_fast.ops import skinny_mm

aten = torch.ops.aten

TARGETS = pytest.mark.parametrize("targets", [1, 3])


def one_row(targets, shape=(2, 6, 8), place=1, count=1):
    """Zero but for some places of the second dimension."""
    values = torch.randn(targets, shape[0], count, *shape[2:])
    return Blocks([(size,) for size in shape], [Block((None, (place, count), *[None] * (len(shape) - 2)), values)])


def two_blocks(targets):
    """Two blocks that share places, one of them of all targets alike."""
    one, other = one_row(targets, place=4), one_row(1, place=3, count=2)
    return Blocks(one.axes, [*one.blocks, *other.blocks])


def outer(targets):
    """(2,6,8), the last dimension of heads of 4: for each of two queries and each head a row times a column."""
    left, right = torch.randn(targets, 2, 6, 2, 1, 2), torch.randn(1, 2, 1, 2, 4, 2)
    return Blocks([(2,), (6,), (2, 4)], [Block((None,) * 4, Outer(left, right))])


def whole(targets):
    return bundle(torch.randn(targets, 2, 6, 8))


KINDS = {"row": one_row, "two": two_blocks, "outer": outer, "whole": whole}
GRADIENTS = pytest.mark.parametrize("gradient", KINDS)

SAVED, WEIGHT = torch.randn(2, 6, 8), torch.randn(8, 5)
STATISTICS = [SAVED.mean(2, keepdim=True), 1 / (SAVED.var(2, keepdim=True, correction=0) + 1e-5).sqrt()]
HEADS = torch.randn(4, 4, 3)
SCALE, MATRICES = torch.randn(8), torch.randn(2, 8, 5)


def in_order(gradient):
    return aten.clone(gradient, memory_format=torch.contiguous_format)


# What is done with a gradient (2,6,8) on its blocks.
OPERATIONS = {
    "as it is": in_order,
    "rows": lambda g: aten.view(g, [12, 8]),
    "rows, one size inferred": lambda g: aten.view(g, [12, -1]),
    "rows and back": lambda g: aten.view(aten.view(g, [12, 8]), [2, 6, 8]),
    "heads": lambda g: aten.view(g, [2, 6, 2, 4]),
    "heads, merged with images": lambda g: aten.view(
        in_order(aten.permute(aten.view(g, [2, 6, 2, 4]), [0, 2, 1, -1])), [4, 6, 4]
    ),
    "rows of positions first": lambda g: aten._unsafe_view(in_order(aten.transpose(g, 1, 0)), [12, 8]),
    "matrix turned": lambda g: aten.t(aten.view(g, [12, 8])),
    "a new dimension and away": lambda g: aten.squeeze(aten.transpose(aten.unsqueeze(g, -1), 0, 3), 0),
    "no dimension to take away": lambda g: aten.squeeze(g, 1),
    "expanded to what it is": lambda g: aten.expand(g, [2, 6, 8]),
    "selected from three": lambda g: aten.select_backward(g, [2, 3, 6, 8], 1, -1),
    "selected from one": lambda g: aten.select_backward(g, [2, 6, 8, 1], -1, 0),
    "added from two places": lambda g: aten.add(
        aten.select_backward(g, [3, 2, 6, 8], 0, 0), aten.select_backward(aten.mul(g, 2.0), [3, 2, 6, 8], 0, 2)
    ),
    "added to itself, in heads": lambda g: aten.add(aten.view(aten.view(g, [2, 6, 2, 4]), [2, 6, 8]), g),
    "added to a number everywhere": lambda g: aten.add(g, SAVED),
    "stacked": lambda g: aten.stack([g, aten.neg(g)], -1),
    "chunks of the channels": lambda g: aten.cat([g, g, aten.neg(g)], -1),
    "times a number": lambda g: aten.div(aten.mul(g, 3.0), torch.tensor(7.0)),
    "times a vector": lambda g: aten.mul(SCALE, g),
    "times an image": lambda g: aten.mul(g, SAVED[0]),
    "to double": lambda g: aten._to_copy(g, dtype=torch.float64),
    "gelu": lambda g: aten.gelu_backward(g, SAVED, approximate="tanh"),
    "silu": lambda g: aten.silu_backward(g, SAVED),
    "relu": lambda g: aten.threshold_backward(g, SAVED, 0),
    "dropout": lambda g: aten.native_dropout_backward(g, SAVED > 0, 2.0),
    "layer norm": lambda g: aten.native_layer_norm_backward(
        g, SAVED, [8], *STATISTICS, SCALE, SCALE, [True, False, False]
    )[0],
    "layer norm without weights": lambda g: aten.native_layer_norm_backward(
        g, SAVED, [8], *STATISTICS, None, None, [True, False, False]
    )[0],
    "linear": lambda g: aten.mm(aten.view(g, [12, 8]), WEIGHT),
    "linear of a batch": lambda g: aten.bmm(g, WEIGHT.expand(2, 8, 5)),
    "other matrices for each image": lambda g: aten.bmm(g, MATRICES),
    "other matrices for each head": lambda g: aten.bmm(
        aten.view(in_order(aten.permute(aten.view(g, [2, 6, 2, 4]), [0, 2, 1, 3])), [4, 6, 4]), HEADS
    ),
    "softmax": lambda g: aten._softmax_backward_data(g, SAVED.softmax(2), 2, torch.float32),
    "softmax of heads": lambda g: aten._softmax_backward_data(
        aten.transpose(aten.view(g, [2, 6, 2, 4]), 1, 2), SAVED.softmax(2).view(2, 2, 6, 4), -1, torch.float32
    ),
    "linear to one channel": lambda g: aten.mm(aten.view(g, [12, 8]), WEIGHT[:, :1]),
    "three linear in one": lambda g: aten.mm(
        aten.view(in_order(aten.permute(aten.stack([g, g, aten.neg(g)]), [1, 2, 0, 3])), [12, 24]),
        WEIGHT.repeat(3, 1).sin(),
    ),
    "linear of rows by positions": lambda g: aten.mm(
        aten.view(in_order(aten.transpose(g, 0, 1)), [12, 8]), WEIGHT.mT.contiguous().mT
    ),
}
# All numbers are written out for these.
UNKNOWN = {
    "rows in other groups": lambda g: aten.view(g, [3, 4, 8]),
    "halves of rows": lambda g: aten.view(g, [2, 2, 3, 8]),
    "a sum": lambda g: aten.sum(g, [1], True),
    "tanh": lambda g: aten.tanh_backward(g, SAVED.tanh()),
    "softmax of rows": lambda g: aten._softmax_backward_data(g, SAVED.softmax(1), 1, torch.float32),
    "expanded": lambda g: aten.expand(g, [4, 2, 6, 8]),
    "added to a vector": lambda g: aten.add(g, SCALE),
    "added to other precision": lambda g: aten.add(g, SAVED.double()),
    "times itself": lambda g: aten.mul(g, g),
    "divided by": lambda g: aten.div(SAVED, aten.add(g, SCALE)),
    "added twice": lambda g: aten.add(g, g, alpha=2),
    "times something larger": lambda g: aten.mul(
        g, torch.randn(3, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    ),
    "layer norm of all": lambda g: aten.native_layer_norm_backward(
        g, SAVED, [6, 8], torch.zeros(2, 1, 1), torch.ones(2, 1, 1), None, None, [True, False, False]
    )[0],
    "layer norm with weights' gradients": lambda g: aten.native_layer_norm_backward(
        g, SAVED, [8], *STATISTICS, SCALE, SCALE, [True, True, True]
    )[1],
    "parts of six and three": lambda g: aten.cat([g, aten.split_with_sizes(g, [3, 3], 1)[0]], 1),
    "parts of two sizes": lambda g: aten.cat([g, aten.select_backward(aten.sum(g, [1]), [2, 1, 8], 1, 0)], 1),
    "a product with itself": lambda g: aten.bmm(g, aten.transpose(g, 1, 2)),
    "products of columns": lambda g: aten.bmm(SAVED.mT.contiguous(), g),
    "split": lambda g: aten.split_with_sizes(g, [2, 4], 1)[1],
}


def stored(gradient):
    return sum(each.numel() for block in gradient.blocks for each in block.tensors())


def assert_same(found, expected, gradient):
    assert isinstance(found, Blocks) and found.targets == gradient.targets
    assert found.shape == expected[0].shape and found.dtype == expected[0].dtype
    torch.testing.assert_close(written_out(found), torch.stack(expected), rtol=1e-5, atol=1e-5)


@TARGETS
@GRADIENTS
@pytest.mark.parametrize("name", [*OPERATIONS, *UNKNOWN])
def test_an_operation_has_the_numbers_of_the_whole_gradient(name, gradient, targets):
    gradient = KINDS[gradient](targets)
    do = {**OPERATIONS, **UNKNOWN}[name]
    assert_same(do(gradient), [do(each) for each in written_out(gradient)], gradient)


@TARGETS
@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"added to a number everywhere"}))
def test_one_row_stays_one_row(name, targets):
    gradient = one_row(targets)
    found = OPERATIONS[name](gradient)
    assert 6 * stored(found) <= found.targets * found.numel() * len(found.blocks)
    assert all(any(block.ranges) for block in found.blocks)


@TARGETS
@pytest.mark.parametrize("shape", [(1, 6, 8), (2, 6, 1), (1, 6, 1), (2, 1, 8)])
def test_dimensions_of_one_place_are_dimensions(shape, targets):
    gradient = bundle(torch.randn(targets, *shape))
    for do in (
        lambda g: aten.transpose(g, 0, 1),
        lambda g: aten.view(g, [-1, shape[2]]),
        lambda g: aten.t(aten.view(g, [-1, shape[2]])),
        lambda g: aten.mm(aten.view(g, [-1, shape[2]]), WEIGHT[: shape[2]]),
        lambda g: aten.stack([g, g], 1),
        lambda g: aten.squeeze(aten.unsqueeze(g, 0), 0),
        lambda g: aten.mul(g, SAVED[: shape[0], : shape[1], : shape[2]]),
        lambda g: aten.select_backward(g, [*shape, 1], 3, 0),
    ):
        assert_same(do(gradient), [do(each) for each in written_out(gradient)], gradient)


@TARGETS
@pytest.mark.parametrize(
    ("shape", "dim", "start", "end", "step"),
    [
        ([2, 9, 8], 1, 2, 8, 1),
        ([2, 9, 8], 1, -7, -1, 1),
        ([2, 9, 8], -2, 3, 2**63 - 1, 1),
        ([2, 6, 8], 1, 0, 2**63 - 1, 1),
        ([7, 6, 8], 0, 5, 7, 1),
        ([2, 12, 8], 1, 0, 12, 2),
    ],
)
def test_a_slice_puts_its_gradient_where_it_was(shape, dim, start, end, step, targets):
    for gradient in (whole(targets), one_row(targets)):
        found = aten.slice_backward(gradient, shape, dim, start, end, step)
        expected = [aten.slice_backward(each, shape, dim, start, end, step) for each in written_out(gradient)]
        assert_same(found, expected, gradient)


@TARGETS
def test_a_slice_of_one_place_too(targets):
    gradient = bundle(torch.randn(targets, 2, 1, 8))
    found = aten.slice_backward(gradient, [2, 6, 8], 1, 3, 4, 1)
    expected = [aten.slice_backward(each, [2, 6, 8], 1, 3, 4, 1) for each in written_out(gradient)]
    assert_same(found, expected, gradient)
    assert stored(found) == stored(gradient)
    assert found.blocks[0].ranges[1] == (3, 1)


@TARGETS
def test_what_is_broadcast_is_written_out(targets):
    gradient = bundle(torch.randn(targets, 2, 1, 8))
    assert_same(aten.mul(gradient, SAVED), [aten.mul(each, SAVED) for each in written_out(gradient)], gradient)


def backward(gradient, *saved, **choices):
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(gradient, *saved, **choices)


def attention(batch, heads, count, width, dtype=torch.float32, **choices):
    query, key, value = (torch.randn(batch, heads, count, width, dtype=dtype) for _ in range(3))
    out, logsumexp = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, False, **choices)
    return query, key, value, out, logsumexp, 0.0, False


@TARGETS
def test_many_blocks_become_one(targets):
    rows = [bundle(torch.randn(targets, 2, 8)) for _ in range(30)]
    total = aten.select_backward(rows[0], [2, 40, 8], 1, 0)
    for i, row in enumerate(rows[1:], 1):
        total = aten.add(total, aten.select_backward(row, [2, 40, 8], 1, i))
        assert len(total.blocks) <= 8
    expected = torch.cat([torch.stack([written_out(each) for each in rows], 2), torch.zeros(targets, 2, 10, 8)], 2)
    assert torch.equal(written_out(total), expected)


def test_blocks_that_fill_the_whole_become_one():
    class_token, patches = bundle(torch.randn(1, 2, 1, 8)), bundle(torch.randn(1, 2, 5, 8))
    total = aten.add(
        aten.slice_backward(class_token, [2, 6, 8], 1, 0, 1, 1), aten.slice_backward(patches, [2, 6, 8], 1, 1, 6, 1)
    )
    assert [block.ranges for block in total.blocks] == [(None, None, None)]
    assert torch.equal(written_out(total), torch.cat([written_out(class_token), written_out(patches)], 2))


@TARGETS
@pytest.mark.parametrize("choices", [{}, {"scale": 3.0}], ids=["plain", "scaled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(2, 3, 36, 4), (1, 3, 36, 4), (2, 1, 36, 4), (1, 1, 36, 1)])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_attention_has_the_gradients_of_all_queries(count, sizes, dtype, choices, targets):
    saved = attention(*sizes, dtype, **choices)
    rows = bundle(torch.randn(targets, *sizes[:2], count, sizes[3], dtype=dtype))
    gradient = aten.slice_backward(rows, sizes, 2, 5, 5 + count, 1)
    found = backward(gradient, *saved, **choices)
    expected = [backward(each, *saved, **choices) for each in written_out(gradient)]
    tolerance = {"rtol": 2e-2, "atol": 5e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 2e-5}
    for found_of, expected_of in zip(found, zip(*expected, strict=True), strict=True):
        assert found_of.shape == expected_of[0].shape and found_of.dtype == dtype
        torch.testing.assert_close(written_out(found_of), torch.stack(expected_of), **tolerance)
    assert stored(found[0]) == stored(rows)
    assert all(isinstance(each.blocks[0].values, Outer) == (count < 9) for each in found[1:])


@TARGETS
def test_attention_of_queries_in_several_blocks(targets):
    sizes = 2, 3, 12, 4
    saved = attention(*sizes)
    rows = [bundle(torch.randn(targets, 2, 3, 4)) for _ in range(2)]
    for places in ((4, 5), (6, 4), (0, 11), (5, 5)):
        gradient = aten.add(*(aten.select_backward(each, sizes, 2, i) for each, i in zip(rows, places, strict=True)))
        expected = [backward(each, *saved) for each in written_out(gradient)]
        for found_of, expected_of in zip(backward(gradient, *saved), zip(*expected, strict=True), strict=True):
            torch.testing.assert_close(written_out(found_of), torch.stack(expected_of), rtol=1e-5, atol=1e-5)


@TARGETS
@pytest.mark.parametrize("sizes", [(2, 12, 8), (1, 12, 8), (2, 12, 1)])
@pytest.mark.parametrize("count", [1, 3])
def test_columns_times_few_rows_have_the_numbers_of_all(count, sizes, targets):
    rows = bundle(torch.randn(targets, sizes[0], count, sizes[2]))
    gradient = aten.slice_backward(rows, sizes, 1, 4, 4 + count, 1)
    for out in (5, 1):
        matrices = torch.randn(sizes[0], 12, out).mT
        found = aten.bmm(matrices, gradient)
        assert_same(found, [aten.bmm(matrices, each) for each in written_out(gradient)], gradient)
        assert isinstance(found.blocks[0].values, Outer)


@TARGETS
def test_columns_times_many_rows_are_summed_up(targets):
    matrices, rows = torch.randn(2, 5, 36), bundle(torch.randn(targets, 2, 12, 8))
    for gradient in (
        aten.slice_backward(rows, [2, 36, 8], 1, 4, 16, 1),
        aten.view(aten.select_backward(rows, [2, 3, 12, 8], 1, 1), [2, 36, 8]),
    ):
        found = aten.bmm(matrices, gradient)
        assert_same(found, [aten.bmm(matrices, each) for each in written_out(gradient)], gradient)
        assert not isinstance(found.blocks[0].values, Outer)


@TARGETS
def test_attention_of_queries_in_two_axes_is_written_out(targets):
    saved, rows = attention(2, 3, 12, 4), bundle(torch.randn(targets, 2, 3, 3, 4))
    gradient = aten.view(aten.select_backward(rows, [2, 3, 3, 4, 4], 3, 1), [2, 3, 12, 4])
    expected = [backward(each, *saved) for each in written_out(gradient)]
    for found_of, expected_of in zip(backward(gradient, *saved), zip(*expected, strict=True), strict=True):
        assert_same(found_of, expected_of, gradient)


@TARGETS
def test_columns_times_few_rows_of_heads_too(targets):
    gradient = aten.view(aten.select_backward(bundle(torch.randn(targets, 2, 3, 8)), [2, 3, 12, 8], 2, 5), [6, 12, 8])
    matrices = torch.randn(6, 5, 12)
    found = aten.view(aten.bmm(matrices, gradient), [2, 3, 5, 8])
    expected = [aten.bmm(matrices, each).view(2, 3, 5, 8) for each in written_out(gradient)]
    assert_same(found, expected, gradient)
    assert isinstance(found.blocks[0].values, Outer)


@TARGETS
def test_attention_to_other_tokens_is_written_out(targets):
    query, (key, value) = torch.randn(2, 3, 12, 4), torch.randn(2, 2, 3, 7, 4)
    out, logsumexp = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, False)
    saved, backward = (
        (query, key, value, out, logsumexp, 0.0, False),
        aten._scaled_dot_product_flash_attention_for_cpu_backward,
    )
    gradient = aten.select_backward(bundle(torch.randn(targets, 2, 3, 4)), [2, 3, 12, 4], 2, 1)
    expected = [backward(each, *saved) for each in written_out(gradient)]
    for found_of, expected_of in zip(backward(gradient, *saved), zip(*expected, strict=True), strict=True):
        assert_same(found_of, expected_of, gradient)


def test_a_number_does_not_widen_a_gradient():
    gradient = aten._to_copy(one_row(1), dtype=torch.bfloat16)
    assert aten.mul(gradient, torch.tensor(2.0)).dtype == torch.bfloat16
    assert aten.mul(gradient, torch.ones(8)).dtype == torch.float32


def test_what_a_block_gives_is_multiplied_by_few_rows_and_columns_only(monkeypatch):
    products = []

    def mm(rows, matrix):
        products.append((*rows.shape, matrix.shape[1]))
        return torch.mm(rows, matrix)

    monkeypatch.setattr(skinny_mm, "mm", mm)
    three = aten.stack([one_row(4), whole(1), outer(4)])
    aten.mm(aten.view(aten.permute(three, [1, 2, 0, 3]), [12, 24]), torch.randn(24, 5))
    assert products == [(4 * 2, 8, 5), (12, 8, 5)]


def test_a_sum_of_more_products_than_it_saves_is_written_out(monkeypatch):
    products = []
    monkeypatch.setattr(skinny_mm, "mm", lambda rows, matrix: products.append(len(rows)) or torch.mm(rows, matrix))
    for count, expected in ((1, []), (8, [12])):
        factors = Outer(torch.randn(1, 2, 6, 1, count), torch.randn(1, 2, 1, 8, count))
        gradient = Blocks([(2,), (6,), (8,)], [Block((None,) * 3, factors)])
        found = aten.mm(aten.view(gradient, [12, 8]), WEIGHT)
        torch.testing.assert_close(written_out(found)[0], written_out(gradient)[0].view(12, 8) @ WEIGHT)
        assert products == expected


def test_rows_of_infinity_that_meet_only_zeros_count_as_zeros():
    gradient, saved = one_row(1), SAVED.clone()
    saved[:, 2:] = torch.inf
    assert written_out(aten.mul(gradient, saved)).isfinite().all()


def test_an_axis_that_a_block_does_not_fill_is_not_divided():
    gradient = one_row(1)
    assert reshaped(gradient, [2, 6, 2, 4]) is not None
    assert reshaped(gradient, [2, 3, 2, 8]) is None
    assert reshaped(gradient, [4, 3, 8]) is None


def test_gradients_of_axes_that_do_not_go_together_are_written_out():
    one = aten.view(aten.view(whole(1), [2, 6, 2, 4]), [2, 6, 8])
    other = aten.view(aten.view(whole(1), [2, 6, 4, 2]), [2, 6, 8])
    for do in (lambda pair: aten.add(*pair), aten.stack):
        found, expected = do([one, other]), do([written_out(each)[0] for each in (one, other)])
        torch.testing.assert_close(written_out(found)[0], expected)


def test_a_name_that_pytorch_does_not_know_is_passed_over():
    known = dict(blocks._WAYS)
    for names in (["no_such_operation.default"], ["mm.no_such_overload"]):
        assert blocks.on(*names)(torch.mm) is torch.mm
    assert blocks._WAYS == known and aten.mm.default in known


def test_nothing_is_written_into_a_gradient():
    with pytest.raises(TypeError, match="would write into"):
        aten.mul_(one_row(1), 2.0)
    with pytest.raises(TypeError, match="would write into"):
        aten.add_(torch.zeros(2, 6, 8), one_row(1))


def test_those_made_meanwhile_are_known_and_not_kept():
    with made() as references:
        kept = one_row(1)
        one_row(2)
    assert [each() is None for each in references] == [False, True] and references[0]() is kept
    one_row(3)
    assert len(references) == 2
