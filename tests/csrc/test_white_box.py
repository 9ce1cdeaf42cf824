"""The kernels' arithmetic one function at a time, bound by white_box.cpp, against exact fractions and numpy."""

import math
from fractions import Fraction

import numpy
import pytest
from support import extensions


@pytest.fixture(scope="session")
def math_(tmp_path_factory):
    return extensions.load("white_box", tmp_path_factory)


SIDES = [1, 2, 3, 5, 7, 14, 40, 224]


@pytest.mark.parametrize("out", SIDES)
@pytest.mark.parametrize("side", SIDES)
def test_every_pixel_reads_at_its_half_pixel_centre(math_, side, out):
    pixels, bounds = math_.resize_table(side, out)
    assert len(pixels) == out
    for x, (low, high, fraction) in enumerate(pixels):
        position = max(Fraction((2 * x + 1) * side, 2 * out) - Fraction(1, 2), Fraction(0))
        assert low == math.floor(position) and high == min(low + 1, side - 1)
        assert fraction == numpy.float32(float(position - low))
    lows = [low for low, _, _ in pixels]
    edges = [x for x in range(out) if x in (0, out - 1) or lows[x - 1] != lows[x] or lows[x + 1] != lows[x]]
    assert sorted(set(bounds)) == edges


@pytest.mark.parametrize("size", [(224, 224), (31, 50), (3, 2), (1, 1), (5, 9)])
@pytest.mark.parametrize("shape", [(7, 7), (5, 9), (1, 6), (14, 3), (1, 1)])
def test_the_extremes_of_cell_corners_are_those_of_all_pixels(math_, shape, size):
    source = numpy.random.default_rng(0).standard_normal(shape).astype(numpy.float32)
    (rows, _), (columns, _) = math_.resize_table(shape[0], size[0]), math_.resize_table(shape[1], size[1])
    stretched = [[math_.lerp(row[low], row[high], t) for low, high, t in columns] for row in source]
    all_pixels = [
        math_.lerp(a, b, t) for low, high, t in rows for a, b in zip(stretched[low], stretched[high], strict=True)
    ]
    low, high = math_.extremes(source, *size)
    # Rounding may lift a pixel inside a cell above its corners, by at most a unit in the last place of the range.
    assert low == pytest.approx(min(all_pixels), abs=3e-7) and high == pytest.approx(max(all_pixels), abs=3e-7)


@pytest.mark.parametrize("value", [0.1, 1e-30, 3e38, -7.3])
def test_interpolating_equal_neighbours_gives_exactly_their_value(math_, value):
    value = float(numpy.float32(value))
    assert all(math_.lerp(value, value, t) == value for t in numpy.linspace(0, 1, 50, dtype=numpy.float32))


@pytest.mark.parametrize("extent", [1.0, 3.0, 0.1, 7e-19, 1e18, *numpy.random.default_rng(1).uniform(0.5, 2, 200)])
def test_the_hottest_pixel_is_exactly_one(math_, extent):
    extent = float(numpy.float32(extent))
    assert math_.normalised(0, [0.0, extent], 0.0, extent) == [0.0, 1.0]
    assert math_.normalised(1, [-extent, extent], -extent, extent)[1] == 1.0


@pytest.mark.parametrize("normalize", [0, 1])
def test_a_map_without_positive_extent_becomes_zeros(math_, normalize):
    assert math_.normalised(normalize, [-2.0, -2.0], -2.0, -2.0) == [0.0, 0.0]
    assert math_.normalised(0, [3.0, 3.0], 3.0, 3.0) == [0.0, 0.0]


def test_a_broken_input_stays_visible_in_every_term(math_):
    for broken in (math.nan, math.inf, -math.inf):
        for term in (math_.hirescam_term, math_.elementwise_term, math_.layercam_term):
            for activation, gradient in ((0.0, broken), (broken, 0.0), (-1.0, broken), (broken, -1.0), (broken, 1.0)):
                assert not math.isfinite(term(activation, gradient)), (term, activation, gradient)
        assert not math.isfinite(math_.plus_plus_term(broken, 1.0))
        assert not math.isfinite(math_.xgradcam_weight(broken, 0.0))


def test_the_weights_by_hand(math_):
    assert math_.plus_plus_term(2.0, 3.0) == 0.25
    assert math_.plus_plus_term(-2.0, 3.0) == 0.0
    assert math_.plus_plus_term(2.0, -3.0) == 0.0  # the denominator is not positive
    assert math_.xgradcam_weight(6.0, 4.0) == 1.5
    assert math_.xgradcam_weight(6.0, 0.0) == 0.0
    assert [math_.elementwise_term(-2.0, 3.0), math_.elementwise_term(-2.0, -3.0)] == [0.0, 6.0]
    assert [math_.layercam_term(-2.0, 3.0), math_.layercam_term(-2.0, -3.0)] == [-6.0, 0.0]


def test_lanes_are_summed_row_by_row(math_):
    rows = numpy.arange(64, dtype=numpy.float32).reshape(8, 8) ** 2
    assert math_.lane_sums(rows) == rows.sum(1).tolist()


def test_all_half_precision_numbers_are_read_as_numpy_reads_them(math_):
    bits = numpy.arange(2**16, dtype=numpy.uint16)
    expected = {
        "half": bits.view(numpy.float16).astype(numpy.float32),
        "bfloat16": (bits.astype(numpy.uint32) << 16).view(numpy.float32),
    }
    for name, one, eight in (
        ("half", math_.half_to_float, math_.read_halves),
        ("bfloat16", math_.bfloat16_to_float, math_.read_bfloat16s),
    ):
        numpy.testing.assert_array_equal([one(b) for b in bits.tolist()], expected[name])
        numpy.testing.assert_array_equal(
            [v for row in bits.reshape(-1, 8).tolist() for v in eight(row)], expected[name]
        )
