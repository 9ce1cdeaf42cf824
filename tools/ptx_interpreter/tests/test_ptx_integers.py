"""The PTX interpreter's integer arithmetic and bit operations, against Python's integers."""

import operator

import numpy as np
import pytest
from ptx_interpreter import Fault
from small_kernels import compute

# A change of the package leaves the interpreter as it is.
pytestmark = pytest.mark.slow


def integer_pairs(kind):
    """All pairs of some integers of a type, its limits among them."""
    number = np.dtype(f"{'i' if kind[0] == 's' else 'u'}{int(kind[1:]) // 8}")
    low, high = np.iinfo(number).min, np.iinfo(number).max
    numbers = [0, 1, 2, 3, 5, 7, 31, 32, high // 3, high - 1, high, low, low + 1]
    numbers += [-1, -2, -7, -32] if low else []
    return np.array([(a, b) for a in numbers for b in numbers], number).T.copy()


def wrapped(values, kind):
    bits = int(kind[1:])
    return [int(value) & (1 << bits) - 1 for value in values]


@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [("add", operator.add), ("sub", operator.sub), ("mul.lo", operator.mul), ("min", min), ("max", max)],
)
def test_integers_wrap_around(name, expected, kind):
    a, b = integer_pairs(kind)
    computed = compute(f"{name}.{kind} %z, %a, %b;", kind, a=(kind, a), b=(kind, b))
    assert computed.tolist() == wrapped(map(expected, a.tolist(), b.tolist()), kind)


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
def test_divisions_round_towards_zero(kind):
    a, b = (numbers[integer_pairs(kind)[1] != 0] for numbers in integer_pairs(kind))
    quotients = [
        abs(x) // abs(y) * (-1 if (x < 0) != (y < 0) else 1) for x, y in zip(a.tolist(), b.tolist(), strict=True)
    ]
    computed = compute(f"div.{kind} %z, %a, %b;", kind, a=(kind, a), b=(kind, b))
    assert computed.tolist() == wrapped(quotients, kind)
    computed = compute(f"rem.{kind} %z, %a, %b;", kind, a=(kind, a), b=(kind, b))
    assert computed.tolist() == wrapped(map(lambda x, y, q: x - q * y, a.tolist(), b.tolist(), quotients), kind)


def test_a_division_by_zero_is_refused():
    with pytest.raises(Fault, match=r"div\.s32 .*thread 5: a division by zero"):
        compute("div.s32 %z, 1, %a;", "s32", a=("s32", np.arange(-5, 3, dtype=np.int32)))


@pytest.mark.parametrize("kind", ["s32", "u32"])
def test_products_have_an_upper_half(kind):
    a, b = integer_pairs(kind)
    products = list(map(operator.mul, a.tolist(), b.tolist()))
    wide = f"{kind[0]}64"
    assert compute(f"mul.wide.{kind} %z, %a, %b;", wide, a=(kind, a), b=(kind, b)).tolist() == wrapped(products, wide)
    computed = compute(f"mul.hi.{kind} %z, %a, %b;", kind, a=(kind, a), b=(kind, b))
    assert computed.tolist() == wrapped((product >> 32 for product in products), kind)
    computed = compute(f"mad.wide.{kind} %z, %a, %b, -5;", wide, a=(kind, a), b=(kind, b))
    assert computed.tolist() == wrapped((product - 5 for product in products), wide)
    if kind == "u32":
        a, b = integer_pairs("u64")
        computed = compute("mul.hi.u64 %z, %a, %b;", "u64", a=("u64", a), b=("u64", b))
        assert computed.tolist() == [x * y >> 64 for x, y in zip(a.tolist(), b.tolist(), strict=True)]


@pytest.mark.parametrize("kind", ["b32", "u32", "s32", "b64", "s64", "u64", "s16"])
def test_shifts_by_the_width_or_more_leave_zero_or_the_sign(kind):
    bits = int(kind[1:])
    a = integer_pairs(kind.replace("b", "u"))[0]
    by = np.resize(np.array([0, 1, 15, 16, 31, 32, 33, 63, 64, 65, 255, 65536, 2**31, 2**32 - 1], np.uint32), a.size)
    name = "shl" if kind[0] == "b" else "shr"
    computed = compute(f"{name}.{kind} %z, %a, %b;", kind, a=(kind, a), b=("u32", by))
    shifted = operator.lshift if name == "shl" else operator.rshift
    expected = [shifted(x, min(y, bits)) for x, y in zip(a.tolist(), by.tolist(), strict=True)]
    assert computed.tolist() == wrapped(expected, kind)


def test_setp_has_two_results_and_combines_with_a_third_predicate():
    a, b = integer_pairs("s32")
    computed = compute(
        "setp.ge.s32 %p3, %a, 3; setp.lt.and.s32 %p1|%p2, %a, %b, !%p3; selp.b32 %r1, 1, 0, %p1;"
        "selp.b32 %r2, 2, 0, %p2; or.b32 %z, %r1, %r2;", "b32", a=("s32", a), b=("s32", b),
    )  # fmt: skip
    expected = [(x < 3) * (1 if x < y else 2) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert computed.tolist() == expected


@pytest.mark.parametrize(("to", "of"), [("s64", "s32"), ("u64", "u32"), ("u32", "u64"), ("s32", "s16"), ("u16", "u32"),
                                        ("s32", "s8"), ("u32", "u8"), ("s16", "s64")])  # fmt: skip
def test_integers_are_truncated_and_sign_extended(to, of):
    a = integer_pairs(of.replace("8", "16"))[0]
    computed = compute(f"cvt.{to}.{of} %z, %a;", to, a=(of.replace("8", "16"), a))
    bits = int(of[1:])
    cut = [x & (1 << bits) - 1 for x in a.tolist()]
    if of[0] == "s":
        cut = [x - (1 << bits) if x >> bits - 1 else x for x in cut]
    assert computed.tolist() == wrapped(cut, to)


@pytest.mark.parametrize("table", [0x00, 0x96, 0xE8, 0xCA, 0x1F])
def test_lop3_combines_three_words_by_a_table(table):
    a, b, c = (np.random.default_rng(i).integers(0, 2**32, 64, np.uint32) for i in range(3))
    computed = compute(f"lop3.b32 %z, %a, %b, %c, {table:#x};", "b32", a=("b32", a), b=("b32", b), c=("b32", c))
    for x, y, z, joined in zip(a.tolist(), b.tolist(), c.tolist(), computed.tolist(), strict=True):
        for bit in range(32):
            index = (x >> bit & 1) * 4 + (y >> bit & 1) * 2 + (z >> bit & 1)
            assert joined >> bit & 1 == table >> index & 1


FIELDS = [(begin, length) for begin in (0, 1, 5, 31, 32, 40) for length in (0, 1, 7, 27, 31, 32, 50)]


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_bit_fields_are_extracted_and_inserted(kind):
    bits = int(kind[1:])
    numbers = integer_pairs(kind)[0]
    a, b = (np.resize(values, 4 * len(FIELDS)) for values in (numbers, numbers[::-1]))
    begin, length = np.array(FIELDS * 4, np.uint32).T.copy()
    operands = {"a": (kind, a), "b": (kind, b), "c": ("u32", begin), "d": ("u32", length)}
    taken = compute(f"bfe.{kind} %z, %a, %c, %d;", kind, **operands).tolist()
    put = compute(f"bfi.b{bits} %z, %a, %b, %c, %d;", kind, **operands).tolist()
    rows = zip(wrapped(a.tolist(), kind), wrapped(b.tolist(), kind), begin.tolist(), length.tolist(), strict=True)
    for (x, y, first, many), cut, joined in zip(rows, taken, put, strict=True):
        for bit in range(bits):
            source = min(first + min(bit, many - 1), bits - 1) if kind[0] == "s" else first + bit
            inside = many > 0 and (kind[0] == "s" or (bit < many and source < bits))
            assert cut >> bit & 1 == (x >> source & 1 if inside else 0)
            assert joined >> bit & 1 == (x >> bit - first if first <= bit < first + many else y >> bit) & 1


@pytest.mark.parametrize("way", ["l", "r"])
@pytest.mark.parametrize("how", ["wrap", "clamp"])
def test_funnel_shifts_shift_two_words_as_one(way, how):
    low, high = (np.random.default_rng(i).integers(0, 2**32, 64, np.uint32) for i in range(2))
    by = np.resize(np.array([0, 1, 17, 31, 32, 33, 64, 2**32 - 1], np.uint32), 64)
    computed = compute(f"shf.{way}.{how}.b32 %z, %a, %b, %c;", "b32", a=("b32", low), b=("b32", high), c=("u32", by))
    for x, y, n, shifted in zip(low.tolist(), high.tolist(), by.tolist(), computed.tolist(), strict=True):
        n, both = n % 32 if how == "wrap" else min(n, 32), y << 32 | x
        assert shifted == (both << n >> 32 if way == "l" else both >> n) & 0xFFFFFFFF


@pytest.mark.parametrize("bits", [32, 64])
def test_bits_are_counted_and_reversed(bits):
    kind, numbers = f"b{bits}", integer_pairs(f"u{bits}")[0]
    rows = [f"{number:0{bits}b}" for number in numbers.tolist()]
    assert compute(f"popc.{kind} %z, %a;", "u32", a=(kind, numbers)).tolist() == [row.count("1") for row in rows]
    zeros = [(row + "1").index("1") for row in rows]
    assert compute(f"clz.{kind} %z, %a;", "u32", a=(kind, numbers)).tolist() == zeros
    assert compute(f"brev.{kind} %z, %a;", kind, a=(kind, numbers)).tolist() == [int(row[::-1], 2) for row in rows]


def test_prmt_chooses_bytes():
    a, b, c = (np.random.default_rng(i).integers(0, 2**32, 96, np.uint32) for i in range(3))
    computed = compute("prmt.b32 %z, %a, %b, %c;", "b32", a=("b32", a), b=("b32", b), c=("b32", c))
    for x, y, chosen, picked in zip(a.tolist(), b.tolist(), c.tolist(), computed.tolist(), strict=True):
        for i in range(4):
            which = chosen >> 4 * i & 15
            byte = (y << 32 | x) >> 8 * (which & 7) & 0xFF
            assert picked >> 8 * i & 0xFF == (byte if which < 8 else 0xFF * (byte >> 7))


def test_a_register_is_packed_from_its_parts_the_lowest_first():
    a, b = (np.arange(32, dtype=np.uint32) * factor for factor in (3, 1 << 20))
    computed = compute("mov.b64 %z, {%a, %b};", "b64", a=("b32", a), b=("b32", b))
    assert np.array_equal(computed, a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32))
    swapped = compute("mov.b64 {%r1, %r2}, %a; mov.b64 %z, {%r2, %r1};", "b64", a=("b64", computed))
    assert np.array_equal(swapped, b.astype(np.uint64) | a.astype(np.uint64) << np.uint64(32))
