"""Each rule carries a gradient in blocks to the values that PyTorch's backward gives for the dense one, by target.

test_sparse_gradients.py has whole models.
"""

import pytest
import torch
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional as F

from gradcam_fast._sparse_backward import graph
from gradcam_fast._sparse_backward.blocks import Block, BlockGradient, OuterProduct
from gradcam_fast._sparse_backward.known_operations import BACKWARD_RULES, is_known
from gradcam_fast._sparse_backward.reshaping import add_gradients, reshape
from gradcam_fast.ops import skinny_mm

TARGETS = pytest.mark.parametrize("targets", [1, 3])


def one_row(targets, shape=(2, 6, 8), place=1, count=1):
    """Zero but for some places of the second dimension."""
    values = torch.randn(targets, shape[0], count, *shape[2:])
    return BlockGradient(
        [(size,) for size in shape], [Block((None, (place, count), *[None] * (len(shape) - 2)), values)]
    )


def two_blocks(targets):
    """Two blocks that share places, one of them the same for all targets."""
    one, other = one_row(targets, place=4), one_row(1, place=3, count=2)
    return BlockGradient(one.axes, [*one.blocks, *other.blocks])


def outer(targets):
    """(2,6,8), the last dimension two heads of 4: for each of two queries and each head a row times a column."""
    left, right = torch.randn(targets, 2, 6, 2, 1, 2), torch.randn(1, 2, 1, 2, 4, 2)
    return BlockGradient([(2,), (6,), (2, 4)], [Block((None,) * 4, OuterProduct(left, right))])


def whole(targets):
    return BlockGradient.from_dense(torch.randn(targets, 2, 6, 8))


KINDS = {"row": one_row, "two": two_blocks, "outer": outer, "whole": whole}
GRADIENTS = pytest.mark.parametrize("kind", KINDS)

SAVED, WEIGHT = torch.randn(2, 6, 8), torch.randn(8, 5)
SCALE, MATRICES, HEADS = torch.randn(8), torch.randn(2, 8, 5), torch.randn(4, 4, 3)
MIXING = torch.randn(2, 6, 6)


def in_heads(tokens):
    """(2,6,8) as (4,6,4): the heads beside the images."""
    return tokens.view(2, 6, 2, 4).permute(0, 2, 1, -1).reshape(4, 6, 4)


def from_heads(heads):
    return heads.view(2, 2, 6, 4).permute(0, 2, 1, -1).reshape(2, 6, 8)


def sum_of_three(query, key, value):
    return query + key - value


# The shape of the input, and what makes (2,6,8) of it: the gradients keep their blocks.
IN_BLOCKS = {
    "an alias": ((2, 6, 8), torch.ops.aten.alias),
    "rows by strides": ((12, 8), lambda x: torch.ops.aten._reshape_alias(x, [2, 6, 8], [48, 8, 1])),
    "a clone": ((2, 6, 8), lambda x: x.clone()),
    "rows": ((12, 8), lambda x: x.view(2, 6, 8)),
    "rows, one size inferred": ((12, 8), lambda x: x.view(-1, 6, 8)),
    "rows and back": ((2, 6, 8), lambda x: x.view(12, 8).view(2, 6, 8)),
    "heads": ((2, 6, 2, 4), lambda x: x.view(2, 6, 8)),
    "heads beside images": ((4, 6, 4), from_heads),
    "rows of positions first": ((12, 8), lambda x: x.view(6, 2, 8).transpose(1, 0).clone()),
    "a transposed matrix": ((8, 12), lambda x: x.t().clone().view(2, 6, 8)),
    "a new dimension and away": ((6, 8, 2), lambda x: x.unsqueeze(0).transpose(0, 3).squeeze(-1)),
    "no dimension to squeeze": ((2, 6, 8), lambda x: x.squeeze(1)),
    "several dimensions squeezed": ((1, 2, 6, 1, 8), lambda x: x.squeeze((0, 3))),
    "all dimensions squeezed": ((1, 2, 6, 1, 8), torch.squeeze),
    "expanded to what it is": ((2, 6, 8), lambda x: x.expand(2, 6, 8)),
    "selected from three": ((2, 3, 6, 8), lambda x: x[:, -1]),
    "selected from one": ((2, 6, 8, 1), lambda x: x[..., 0]),
    "added from two places": ((3, 2, 6, 8), lambda x: x[0] + x[2] * 2),
    "added to itself, in heads": ((2, 6, 8), lambda x: x.view(2, 6, 2, 4).clone().view(2, 6, 8) + x),
    "added twice": ((2, 6, 8), lambda x: torch.add(SAVED, x, alpha=2)),
    "subtracted twice": ((2, 6, 8), lambda x: torch.sub(SAVED, x, alpha=2)),
    "unbound": ((2, 6, 8, 2), lambda x: x.unbind(-1)[0] - x.unbind(-1)[1]),
    "unbound, one part unused": ((2, 6, 8, 3), lambda x: -x.unbind(-1)[1]),
    "chunks of the channels": ((2, 6, 24), lambda x: sum_of_three(*x.chunk(3, -1))),
    "equal parts": ((2, 6, 24), lambda x: sum_of_three(*x.split([8, 8, 8], -1))),
    "times a number": ((2, 6, 8), lambda x: x * 3.0 / torch.tensor(7.0)),
    "times a vector": ((2, 6, 8), lambda x: SCALE * x),
    "times an image": ((2, 6, 8), lambda x: x * SAVED[0]),
    "times itself": ((2, 6, 8), lambda x: x * x),
    "divided by itself": ((2, 6, 8), lambda x: (1 + x) / (3 + x)),
    "divided by an image": ((2, 6, 8), lambda x: x / SAVED[0]),
    "from double": ((2, 6, 8), lambda x: x.double().float()),
    "gelu": ((2, 6, 8), lambda x: F.gelu(x, approximate="tanh")),
    "silu": ((2, 6, 8), F.silu),
    "relu": ((2, 6, 8), F.relu),
    "sigmoid": ((2, 6, 8), torch.sigmoid),
    "dropout": ((2, 6, 8), lambda x: x * (SAVED > 0) / 0.5),
    "layer norm": ((2, 6, 8), lambda x: F.layer_norm(x, (8,), SCALE, SCALE)),
    "layer norm without weights": ((2, 6, 8), lambda x: F.layer_norm(x, (8,))),
    "layer norm with trained weights": (
        (2, 6, 8),
        lambda x: F.layer_norm(x, (8,), SCALE.clone().requires_grad_(), SCALE.clone().requires_grad_()),
    ),
    "linear": ((12, 5), lambda x: (x @ WEIGHT.t()).view(2, 6, 8)),
    "linear with a bias": ((12, 5), lambda x: F.linear(x, WEIGHT.clone().requires_grad_(), SCALE).view(2, 6, 8)),
    "linear of a batch, frozen": ((2, 6, 5), lambda x: F.linear(x, WEIGHT, SCALE)),
    "linear of a batch": ((2, 6, 5), lambda x: torch.bmm(x, WEIGHT.t().expand(2, 5, 8))),
    "other matrices for each image": ((2, 6, 5), lambda x: torch.bmm(x, MATRICES.mT)),
    "other matrices for each head": ((4, 6, 3), lambda x: from_heads(torch.bmm(x, HEADS.mT))),
    "softmax": ((2, 6, 8), lambda x: x.softmax(2)),
    "softmax of heads": ((2, 2, 6, 4), lambda x: x.softmax(-1).transpose(1, 2).flatten(2)),
    "linear to one channel": ((12, 1), lambda x: (x @ WEIGHT[:, :1].t()).view(2, 6, 8)),
    "three linear in one": (
        (12, 5),
        lambda x: sum_of_three(*(x @ WEIGHT.repeat(3, 1).sin().t()).view(2, 6, 3, 8).permute(2, 0, 1, 3)),
    ),
    "linear of rows by positions": (
        (12, 5),
        lambda x: (x @ WEIGHT.t()).view(6, 2, 8).transpose(0, 1).clone(),
    ),
}
# PyTorch computes these from the dense gradient, or the rule fills all of it.
DENSELY = {
    "rows in other groups": ((3, 4, 8), lambda x: x.view(2, 6, 8)),
    "halves of rows": ((2, 2, 3, 8), lambda x: x.view(2, 6, 8)),
    "a mean": ((2, 3, 6, 8), lambda x: x.mean(1)),
    "a sum": ((2, 6, 3, 8), lambda x: x.sum(2)),
    "tanh": ((2, 6, 8), torch.tanh),
    "softmax of rows": ((2, 6, 8), lambda x: x.softmax(1)),
    "expanded": ((6, 8), lambda x: x.expand(2, 6, 8)),
    "added to a dense gradient": ((2, 6, 8), lambda x: x + x.tanh()),
    "a vector added to": ((8,), lambda x: SAVED + x),
    "an image added to, in other precision": ((6, 8), lambda x: (SAVED.double() + x).float()),
    "times something larger": ((6, 1), lambda x: SAVED * x),
    "layer norm of all": ((2, 6, 8), lambda x: F.layer_norm(x, (6, 8))),
    "concatenated": ((2, 3, 8), lambda x: torch.cat([x, x.tanh()], 1)),
    "a product with itself": ((2, 6, 8), lambda x: torch.bmm(torch.bmm(x, x.mT), SAVED)),
    "products of columns": ((2, 6, 8), lambda x: torch.bmm(MIXING, x)),
    "gathered": ((2, 6, 9), lambda x: x.gather(2, torch.arange(8).expand(2, 6, 8))),
    "a slice of a row among three": ((2, 6, 3, 8), lambda x: x[:, :, 1:2].squeeze(2)),
}


def carry(forward, gradient, *shapes, dtype=torch.float32):
    """The gradients of the inputs in blocks, and by PyTorch for each target."""
    inputs = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    output = forward(*inputs)
    assert output.shape == gradient.shape and output.dtype == gradient.dtype
    start, sources = get_gradient_edge(output), [get_gradient_edge(each) for each in inputs]
    operations = graph.plan(start, sources)
    assert operations is not None
    with torch.no_grad():
        found = graph.backward(operations, start, sources, gradient)
    expected = [torch.autograd.grad(output, inputs, dense, retain_graph=True) for dense in gradient.dense()]
    return list(zip(found, map(torch.stack, zip(*expected, strict=True)), strict=True))


def carry_one(forward, gradient, shape):
    ((found, expected),) = carry(forward, gradient, shape)
    assert_same(found, expected)
    return found


def assert_same(found, expected, rtol=1e-5, atol=1e-5):
    assert found.shape == expected.shape[1:] and found.targets == len(expected) and found.dtype == expected.dtype
    torch.testing.assert_close(found.dense(), expected, rtol=rtol, atol=atol)


def stored(gradient):
    return sum(tensor.numel() for block in gradient.blocks for tensor in block.tensors())


@TARGETS
@GRADIENTS
@pytest.mark.parametrize("name", [*IN_BLOCKS, *DENSELY])
def test_a_rule_gives_the_values_of_the_dense_gradient(name, kind, targets):
    shape, forward = {**IN_BLOCKS, **DENSELY}[name]
    carry_one(forward, KINDS[kind](targets), shape)


@TARGETS
@pytest.mark.parametrize("name", IN_BLOCKS)
def test_one_row_stays_one_row(name, targets):
    shape, forward = IN_BLOCKS[name]
    found = carry_one(forward, one_row(targets), shape)
    assert 6 * stored(found) <= found.targets * found.dense()[0].numel() * len(found.blocks)
    assert all(any(block.intervals) for block in found.blocks)


INDEX = torch.arange(6).flip(0)
POSITIVE = {
    "absolute value": torch.abs,
    "adaptive pooling": lambda x: F.adaptive_avg_pool2d(x[None], (3, 2)),
    "largest, shared": lambda x: x.amax(2),
    "pooling": lambda x: F.avg_pool2d(x[None], 2),
    "concatenated": lambda x: torch.cat([x, x], 1),
    "clamped": lambda x: x.clamp(0.5, 1.5),
    "clamped below": lambda x: x.clamp_min(0.5),
    "elu": lambda x: F.elu(x - 1),
    "exponential": torch.exp,
    "hard sigmoid": F.hardsigmoid,
    "hard swish": F.hardswish,
    "relu6": F.relu6,
    "indexed": lambda x: x[:, [3, 0]],
    "indices selected": lambda x: x.index_select(1, INDEX),
    "leaky relu": lambda x: F.leaky_relu(x - 1),
    "norm": lambda x: x.norm(dim=2),
    "unit vectors": lambda x: F.normalize(x, dim=2),
    "logarithm": torch.log,
    "log sigmoid": F.logsigmoid,
    "log softmax": lambda x: x.log_softmax(2),
    "log of a sum": lambda x: x.logsumexp(2),
    "masked": lambda x: x.masked_fill(SAVED > 0, 0),
    "largest": lambda x: x.max(2).values,
    "max pooling": lambda x: F.max_pool2d(x[None], 2),
    "square": lambda x: x**2,
    "reciprocal root": torch.rsqrt,
    "softplus": F.softplus,
    "root": torch.sqrt,
    "stacked": lambda x: torch.stack([x, x], 1),
    "sum of all": torch.sum,
    "top three": lambda x: x.topk(3, dim=2).values,
    "where": lambda x: torch.where(SAVED > 0, x, 2 * x),
}


@TARGETS
@pytest.mark.parametrize("name", POSITIVE)
def test_what_is_left_to_pytorch_has_the_values_of_each_target(name, targets):
    def forward(x):
        return POSITIVE[name](x.exp())

    shape = forward(torch.ones(2, 6, 8)).shape
    carry_one(forward, BlockGradient.from_dense(torch.randn(targets, *shape)), (2, 6, 8))


def test_every_rule_is_met_by_a_test_of_this_file(monkeypatch):
    met = set()
    monkeypatch.setattr(graph, "is_known", lambda operation: met.add(operation.node.name()) or is_known(operation))
    cases = [*IN_BLOCKS.values(), *DENSELY.values(), *[((2, 6, 8), forward) for forward in POSITIVE.values()]]
    for shape, forward in [*cases, ((2, 1, 6, 8), lambda x: F.scaled_dot_product_attention(x, x, x))]:
        inputs = torch.randn(shape, requires_grad=True)
        graph.plan(get_gradient_edge(forward(inputs)), [get_gradient_edge(inputs)])
    assert set(BACKWARD_RULES) - met == set()


@TARGETS
@pytest.mark.parametrize("shape", [(1, 6, 8), (2, 6, 1), (1, 6, 1), (2, 1, 8)])
def test_dimensions_of_size_one_are_dimensions(shape, targets):
    gradient, (batch, count, width) = BlockGradient.from_dense(torch.randn(targets, *shape)), shape
    rows = batch * count
    for shape_of_input, forward in (
        ((count, batch, width), lambda x: x.transpose(0, 1)),
        ((rows, width), lambda x: x.view(shape)),
        ((width, rows), lambda x: x.t().clone().view(shape)),
        ((rows, 5), lambda x: (x @ WEIGHT[:width].t()).view(shape)),
        ((batch, 2, count, width), lambda x: x.unbind(1)[0] + x.unbind(1)[1]),
        (shape, lambda x: x.unsqueeze(0).squeeze(0)),
        (shape, lambda x: x * SAVED[:batch, :count, :width]),
        ((*shape, 1), lambda x: x[..., 0]),
    ):
        carry_one(forward, gradient, shape_of_input)


@TARGETS
@pytest.mark.parametrize(
    ("shape", "slices"),
    [
        ((2, 9, 8), (slice(None), slice(2, 8))),
        ((2, 9, 8), (slice(None), slice(-7, -1))),
        ((2, 9, 8), (slice(None), slice(3, None))),
        ((2, 6, 8), (slice(None), slice(0, None))),
        ((7, 6, 8), (slice(5, 7),)),
    ],
)
def test_a_slice_puts_its_gradient_where_it_was(shape, slices, targets):
    for gradient in (whole(targets), one_row(targets)):
        carry_one(lambda x: x[slices], gradient, shape)


@TARGETS
def test_a_slice_of_one_place_too(targets):
    gradient = BlockGradient.from_dense(torch.randn(targets, 2, 1, 8))
    found = carry_one(lambda x: x[:, 3:4], gradient, (2, 6, 8))
    assert stored(found) == stored(gradient)
    assert found.blocks[0].intervals[1] == (3, 1)


@TARGETS
def test_many_blocks_become_one(targets):
    gradient = BlockGradient.from_dense(torch.randn(targets, 2, 8))
    found = carry_one(lambda x: sum(i * x[:, i] for i in range(1, 31)), gradient, (2, 40, 8))
    assert len(found.blocks) <= 8


def test_blocks_that_fill_the_whole_become_one():
    gradient = BlockGradient.from_dense(torch.randn(1, 2, 5, 8))
    found = carry_one(lambda x: x[:, 0:1] + x[:, 1:6], gradient, (2, 6, 8))
    assert [block.intervals for block in found.blocks] == [(None, None, None)]


def attention(**options):
    return lambda query, key, value: F.scaled_dot_product_attention(query, key, value, **options)


def rows_of(gradient, sizes, start, count):
    """A gradient (K,B,heads,count,C) at some of the queries."""
    return BlockGradient(
        [(size,) if size > 1 else () for size in sizes],
        [
            Block(
                tuple((start, count) if i == 2 else None for i, size in enumerate(sizes) if size > 1),
                gradient.reshape(len(gradient), *(s for i, s in enumerate(gradient.shape[1:]) if i == 2 or s > 1)),
            )
        ],
    )


@TARGETS
@pytest.mark.parametrize("options", [{}, {"scale": 3.0}], ids=["plain", "scaled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(2, 3, 36, 4), (1, 3, 36, 4), (2, 1, 36, 4), (1, 1, 36, 1)])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_attention_has_the_gradients_of_all_queries(count, sizes, dtype, options, targets):
    rows = torch.randn(targets, *sizes[:2], count, sizes[3], dtype=dtype)
    results = carry(attention(**options), rows_of(rows, sizes, 5, count), sizes, sizes, sizes, dtype=dtype)
    tolerance = {"rtol": 2e-2, "atol": 5e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 2e-5}
    for found, expected in results:
        assert_same(found, expected, **tolerance)
    assert stored(results[0][0]) == rows.numel()
    assert all(isinstance(found.blocks[0].values, OuterProduct) == (count < 9) for found, _ in results[1:])


@TARGETS
def test_attention_of_queries_in_several_blocks(targets):
    sizes = 2, 3, 12, 4
    for places in ((4, 5), (6, 4), (0, 11), (5, 5)):
        gradient = add_gradients(*(rows_of(torch.randn(targets, 2, 3, 1, 4), sizes, place, 1) for place in places))
        for found, expected in carry(attention(), gradient, sizes, sizes, sizes):
            assert_same(found, expected)


@TARGETS
@pytest.mark.parametrize("options", [{"is_causal": True}, {"attn_mask": torch.randn(12, 12)}], ids=["causal", "masked"])
def test_attention_of_other_kinds_is_left_to_pytorch(options, targets):
    sizes = 2, 3, 12, 4
    gradient = rows_of(torch.randn(targets, 2, 3, 1, 4), sizes, 5, 1)
    for found, expected in carry(attention(**options), gradient, sizes, sizes, sizes):
        assert_same(found, expected)


@TARGETS
def test_attention_of_queries_in_two_axes_is_left_to_pytorch(targets):
    values = torch.randn(targets, 2, 3, 3, 1, 4)
    gradient = BlockGradient([(2,), (3,), (3, 4), (4,)], [Block((None, None, None, (1, 1), None), values)])
    sizes = 2, 3, 12, 4
    for found, expected in carry(attention(), gradient, sizes, sizes, sizes):
        assert_same(found, expected)


@TARGETS
def test_attention_to_other_tokens_is_left_to_pytorch(targets):
    gradient = rows_of(torch.randn(targets, 2, 3, 1, 4), (2, 3, 12, 4), 1, 1)
    for found, expected in carry(attention(), gradient, (2, 3, 12, 4), (2, 3, 7, 4), (2, 3, 7, 4)):
        assert_same(found, expected)


@TARGETS
@pytest.mark.parametrize("sizes", [(2, 12, 8), (1, 12, 8), (2, 12, 1)])
@pytest.mark.parametrize("count", [1, 3])
def test_columns_times_few_rows_have_the_values_of_all(count, sizes, targets):
    batch, rows, width = sizes
    axes = [(size,) if size > 1 else () for size in sizes]
    intervals = tuple((4, count) if i == 1 else None for i, size in enumerate(sizes) if size > 1)
    values = torch.randn(targets, *(size for size in (batch, count, width) if size > 1 or size == count))
    values = values.reshape(targets, *(count if i == 1 else s for i, s in enumerate(sizes) if i == 1 or s > 1))
    gradient = BlockGradient(axes, [Block(intervals, values)])
    for inner in (5, 1):
        matrices = torch.randn(batch, rows, inner)
        found = carry_one(lambda x, matrices=matrices: torch.bmm(matrices, x), gradient, (batch, inner, width))
        assert isinstance(found.blocks[0].values, OuterProduct)


@TARGETS
def test_columns_times_many_rows_are_summed_up(targets):
    matrices = torch.randn(2, 36, 5)
    twelve = BlockGradient([(2,), (36,), (8,)], [Block((None, (4, 12), None), torch.randn(targets, 2, 12, 8))])
    third = BlockGradient([(2,), (3, 12), (8,)], [Block((None, (1, 1), None, None), torch.randn(targets, 2, 1, 12, 8))])
    for gradient in (twelve, third):
        found = carry_one(lambda x: torch.bmm(matrices, x), gradient, (2, 5, 8))
        assert not isinstance(found.blocks[0].values, OuterProduct)


@TARGETS
def test_columns_times_few_rows_of_heads_too(targets):
    gradient = BlockGradient(
        [(2, 3), (12,), (8,)], [Block((None, None, (5, 1), None), torch.randn(targets, 2, 3, 1, 8))]
    )
    matrices = torch.randn(6, 12, 5)
    found = carry_one(lambda x: torch.bmm(matrices, x), gradient, (6, 5, 8))
    assert isinstance(found.blocks[0].values, OuterProduct)


def test_a_gradient_has_the_dtype_of_what_it_belongs_to():
    gradient = one_row(1)
    for forward in (lambda x: x * torch.tensor(2.0, dtype=torch.float64), lambda x: (x.bfloat16() * SCALE).float()):
        assert carry_one(forward, gradient, (2, 6, 8)).dtype == torch.float32


def test_what_a_block_gives_is_multiplied_by_few_rows_and_columns_only(monkeypatch):
    products = []

    def mm(rows, matrix):
        products.append((*rows.shape, matrix.shape[1]))
        return torch.mm(rows, matrix)

    monkeypatch.setattr(skinny_mm, "mm", mm)
    three = [one_row(4), whole(1), outer(4)]
    inputs = torch.randn(12, 5, requires_grad=True)
    parts = (inputs @ torch.randn(24, 5).t()).view(2, 6, 3, 8).unbind(2)
    # Each part of the sum has a gradient of its own: it is started at the three parts.
    start, sources = get_gradient_edge(parts[0]), [get_gradient_edge(inputs)]
    operations = graph.plan(start, sources)
    graph_backward = graph.BACKWARD_RULES["UnbindBackward0"].backward
    stacked = graph_backward(operations[0], three)
    with torch.no_grad():
        graph.backward(operations[1:], get_gradient_edge(parts[0])._replace(node=operations[1].node), sources, stacked)
    assert products == [(4 * 2, 8, 5), (12, 8, 5)]


def test_a_sum_of_more_products_than_it_saves_is_multiplied_out(monkeypatch):
    products = []
    monkeypatch.setattr(skinny_mm, "mm", lambda rows, matrix: products.append(len(rows)) or torch.mm(rows, matrix))
    for count, expected in ((1, []), (8, [12])):
        factors = OuterProduct(torch.randn(1, 2, 6, 1, count), torch.randn(1, 2, 1, 8, count))
        gradient = BlockGradient([(2,), (6,), (8,)], [Block((None,) * 3, factors)])
        carry_one(lambda x: (x @ WEIGHT.t()).view(2, 6, 8), gradient, (12, 5))
        assert products == expected


def test_rows_of_infinity_that_meet_only_zeros_count_as_zeros():
    scale = SAVED.clone()
    scale[:, 2:] = torch.inf
    inputs = torch.randn(2, 6, 8, requires_grad=True)
    output = inputs * scale
    start, sources = get_gradient_edge(output), [get_gradient_edge(inputs)]
    (found,) = graph.backward(graph.plan(start, sources), start, sources, one_row(1))
    assert found.dense().isfinite().all()


def test_an_axis_that_a_block_does_not_fill_is_not_split():
    gradient = one_row(1)
    assert reshape(gradient, [2, 6, 2, 4]) is not None
    assert reshape(gradient, [2, 3, 2, 8]) is None
    assert reshape(gradient, [4, 3, 8]) is None


def test_gradients_whose_axes_cannot_be_shared_are_added_densely():
    one = reshape(reshape(whole(1), [2, 6, 2, 4]), [2, 6, 8])
    other = reshape(reshape(whole(1), [2, 6, 4, 2]), [2, 6, 8])
    torch.testing.assert_close(add_gradients(one, other).dense(), one.dense() + other.dense())
    carry_one(lambda x: x.view(2, 6, 2, 4).clone().flatten(2) + x.view(2, 6, 4, 2).clone().flatten(2), one, (2, 6, 8))
