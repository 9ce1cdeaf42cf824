"""The product of a few rows and a large matrix: as exact as PyTorch's, without the rows that meet only zeros."""

import pytest
import torch

import gradcam_fast
from gradcam_fast.ops import skinny_mm

pytestmark = pytest.mark.skipif(not gradcam_fast.backend().kernels[0].fused, reason="there is no kernel for the CPU")


def product(rows, matrix):
    return torch.ops.gradcam_fast.skinny_mm.default(rows, matrix)


def assert_right(rows, matrix):
    exact = rows.double() @ matrix.double()
    # Every sum of this many random numbers is of about their magnitude.
    magnitude = rows.double().norm(dim=1, keepdim=True) * matrix.double().norm(dim=0)
    assert ((product(rows, matrix) - exact).abs() <= 2e-7 * magnitude).all()


@pytest.mark.parametrize("columns", [1, 5, 8, 127, 1024, 1027, 3000])
@pytest.mark.parametrize("inner", [1, 7, 8, 9, 100, 517])
@pytest.mark.parametrize("count", [1, 2, 10, 16])
def test_it_is_the_product(count, inner, columns):
    assert_right(torch.randn(count, inner), torch.randn(inner, columns))


@pytest.mark.parametrize("values", [torch.randn, torch.rand], ids=["of both signs", "positive"])
def test_long_sums_are_as_exact_as_pytorchs(values):
    rows, matrix = values(2, 25088), values(25088, 64)
    exact = rows.double() @ matrix.double()
    ours, pytorchs = ((found - exact).abs().max() for found in (product(rows, matrix), torch.mm(rows, matrix)))
    assert ours <= 2 * pytorchs


@pytest.mark.parametrize("silent", [0.5, 0.9, 1.0])
def test_it_is_the_product_where_much_is_zero(silent):
    rows = torch.randn(3, 300) * (torch.rand(300) >= silent)
    assert_right(rows, torch.randn(300, 50))
    assert_right(rows * (torch.rand(3, 300) < 0.5), torch.randn(300, 50))


def test_strides_are_taken_as_they_are():
    matrix = torch.randn(40, 90)
    assert_right(torch.randn(40, 3).t(), matrix)
    assert_right(torch.randn(1, 40).expand(4, 40), matrix)
    assert_right(torch.randn(3, 40), matrix[:, 7:70])
    assert_right(torch.randn(3, 20), matrix[::2])
    assert_right(torch.randn(3, 40), torch.randn(1, 90).expand(40, 90))


@pytest.mark.parametrize(("count", "inner", "columns"), [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_nothing_times_something(count, inner, columns):
    found = product(torch.randn(count, inner), torch.randn(inner, columns))
    assert found.shape == (count, columns) and not found.any()


def test_rows_that_meet_only_zeros_are_not_read():
    rows, matrix = torch.randn(3, 20), torch.randn(20, 30)
    rows[:, 5] = 0
    expected = product(rows, matrix)
    matrix[5] = torch.nan
    assert torch.equal(product(rows, matrix), expected)
    rows[2, 5] = 1
    assert product(rows, matrix).isnan().all()


def test_nan_and_infinity_stay_in_their_row():
    rows, matrix = torch.randn(3, 20), torch.randn(20, 30)
    expected = product(rows, matrix)
    rows[1, 4], rows[2, 4] = torch.nan, torch.inf
    found = product(rows, matrix)
    assert torch.equal(found[0], expected[0])
    assert not found[1:].isfinite().any()


def test_bits_do_not_depend_on_the_number_of_threads():
    rows, matrix = torch.randn(4, 301), torch.randn(301, 5003)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            found.append(product(rows, matrix))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(matrix, found[0]) for matrix in found)


@pytest.mark.parametrize(
    ("rows", "matrix", "message"),
    [
        (torch.zeros(3), torch.zeros(3, 4), "expected two matrices, got 1D and 2D"),
        (torch.zeros(2, 3), torch.zeros(4, 3), "rows have 3 columns and the matrix 4 rows"),
        (torch.zeros(2, 3), torch.zeros(3, 4).double(), "expected float32"),
        (torch.zeros(2, 3), torch.zeros(4, 3).t(), "should lie side by side, got stride 3"),
    ],
)
def test_what_it_cannot_multiply_is_refused(rows, matrix, message):
    with pytest.raises(RuntimeError, match=message):
        product(rows, matrix)


def test_it_passes_opcheck():
    operator = torch.ops.gradcam_fast.skinny_mm.default
    results = torch.library.opcheck(operator, (torch.randn(2, 3), torch.randn(3, 4)))
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("count", [1, 16])
def test_few_rows_and_a_large_matrix_are_its_own(count):
    rows, matrix = torch.randn(count, 2048), torch.randn(2048, 2048)
    assert skinny_mm.is_skinny(rows, matrix)
    assert torch.equal(skinny_mm.mm(rows, matrix), product(rows, matrix))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize(
    ("count", "sides", "change"),
    [
        (17, (2048, 2048), torch.clone),
        (2, (2047, 2048), torch.clone),
        (2, (8192, 512), torch.clone),
        (2, (2048, 2048), torch.t),
        (2, (2048, 2048), torch.Tensor.bfloat16),
        (2, (2048, 2048), torch.Tensor.to_sparse_csr),
        (2, (2048, 2048), lambda matrix: matrix.to("meta")),
    ],
    ids=["many rows", "small", "narrow", "transposed", "bfloat16", "sparse", "elsewhere"],
)
def test_what_pytorch_does_better_is_left_to_it(count, sides, change):
    matrix = change(torch.ones(sides))
    rows = torch.ones(count, matrix.shape[0], dtype=matrix.dtype, device=matrix.device)
    assert not skinny_mm.is_skinny(rows, matrix)
    assert skinny_mm.mm(rows, matrix).shape == (count, matrix.shape[1])
