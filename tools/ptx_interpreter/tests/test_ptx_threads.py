"""The PTX interpreter's threads: divergence, barriers, shuffles, copies, memory spaces, and the counts of a Profile.

What the interpreter refuses is in test_ptx_refusals.py.
"""

import numpy as np
import pytest
from ptx_interpreter import Profile
from small_kernels import run

# A change of the package leaves the interpreter as it is.
pytestmark = pytest.mark.slow

BYTES = bytes(number % 255 + 1 for number in range(512))
GIVEN = np.arange(256, dtype=np.uint32).tobytes()
STORE = "st.global.u32 [%at], %r1;"


@pytest.mark.parametrize("order", ["together", "forwards", "backwards"])
def test_threads_diverge_at_branches_and_join_again(order):
    """Each thread counts the steps of 3n+1 from its number to one."""
    stored = run(
        """
        add.u32 %r2, %tid, 1; mov.u32 %r1, 0;
        again: setp.eq.u32 %p1, %r2, 1; @%p1 bra over;
        add.u32 %r1, %r1, 1; and.b32 %r3, %r2, 1; setp.eq.u32 %p2, %r3, 0; @%p2 bra even;
        mad.lo.u32 %r2, %r2, 3, 1; bra.uni again;
        even: shr.u32 %r2, %r2, 1; bra.uni again;
        over: bar.sync 0;
        """ + STORE, threads=64, order=order,
    )  # fmt: skip

    def steps(n):
        return 0 if n == 1 else 1 + steps(3 * n + 1 if n % 2 else n // 2)

    assert stored.tolist() == [steps(n + 1) for n in range(64)]


def test_an_instruction_is_skipped_where_its_guard_does_not_hold():
    guards = "setp.lt.u32 %p1, %tid, 40; mov.u32 %r1, 1; @%p1 mov.u32 %r1, 2; @!%p1 add.u32 %r1, %r1, 4;"
    assert run(guards + STORE, threads=64).tolist() == [2] * 40 + [5] * 24


def test_a_branch_is_uniform_if_no_warp_diverges():
    branch = "mov.u32 %r1, 1; setp.lt.u32 %p1, %tid, 32; @%p1 bra.uni on; mov.u32 %r1, 2; on:"
    assert run(branch + STORE, threads=64).tolist() == [1] * 32 + [2] * 32


def test_barrier_sync_may_be_reached_at_different_instructions():
    apart = "setp.lt.u32 %p1, %tid, 16; @%p1 bra on; barrier.sync 0; bra.uni over; on: barrier.sync 0; over:"
    assert run(f"st.shared.u32 [%mine], %tid; {apart} ld.shared.u32 %r1, [%next];" + STORE).tolist() == [
        *range(1, 32),
        0,
    ]


def test_brx_branches_by_a_table():
    stored = run(
        """
        and.b32 %r2, %tid, 3;
        table: .branchtargets zero, one, one, three;
        brx.idx %r2, table;
        zero: mov.u32 %r1, 7; bra.uni over;
        one: mov.u32 %r1, 8; bra.uni over;
        three: mov.u32 %r1, 9;
        over:
        """ + STORE
    )  # fmt: skip
    assert stored.tolist() == [7, 8, 8, 9] * 8


@pytest.mark.parametrize(
    ("mode", "b", "c", "source"),
    [
        ("bfly", 5, 31, lambda lane: lane ^ 5),
        ("up", 3, 0, lambda lane: lane - 3 if lane >= 3 else lane),
        ("down", 4, 31, lambda lane: lane + 4 if lane + 4 < 32 else lane),
        ("idx", 9, 31, lambda lane: 9),
        # Eight lanes at a time.
        ("down", 2, 24 << 8 | 31, lambda lane: lane + 2 if lane % 8 < 6 else lane),
        ("idx", 3, 24 << 8 | 31, lambda lane: lane // 8 * 8 + 3),
    ],
)
def test_shuffles_read_from_another_lane_or_their_own(mode, b, c, source):
    shuffle = f"shfl.sync.{mode}.b32 %r1|%p1, %tid, {b}, {c}, -1; @!%p1 add.u32 %r1, %r1, 1000;"
    read = [source(lane) for lane in range(32)]
    moved = [lane != of or mode in ("bfly", "idx") for lane, of in enumerate(read)]
    expected = [of + 1000 * (not stored) for of, stored in zip(read, moved, strict=True)]
    assert run(shuffle + STORE, threads=64).tolist() == expected + [value + 32 for value in expected]


def test_half_a_warp_shuffles_by_itself():
    half = "setp.lt.u32 %p1, %tid, 16; mov.u32 %r1, 0; @!%p1 bra on; shfl.sync.bfly.b32 %r1, %tid, 1, 31, 0xFFFF; on:"
    assert run(half + STORE).tolist() == [lane ^ 1 for lane in range(16)] + [0] * 16


def test_barriers_do_not_wait_for_exited_threads():
    before = (
        "st.shared.u32 [%mine], %tid; bar.sync 0; setp.ge.u32 %p1, %tid, 32; @%p1 st.global.u32 [%at], 5; @%p1 ret;"
    )
    stored = run(before + "bar.sync 0; ld.shared.u32 %r1, [%mine];" + STORE, threads=64)
    assert stored.tolist() == [*range(32), *[5] * 32]


def test_the_blocks_of_a_cluster_read_each_other_s_shared_memory():
    other = """
        mad.lo.u32 %r1, %block, 100, %tid; st.shared.u32 [%mine], %r1;
        barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;
        add.u32 %r2, %block, 1; and.b32 %r2, %r2, 3; mapa.shared::cluster.u32 %r3, %mine, %r2;
        ld.shared::cluster.u32 %r1, [%r3];
        barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;
    """
    stored = run(other + STORE, blocks=4, clusters=2).reshape(2, 4, 32)
    assert np.array_equal(
        stored, np.broadcast_to([[100 * ((b + 1) % 4) + t for t in range(32)] for b in range(4)], (2, 4, 32))
    )


@pytest.mark.parametrize(("level", "size"), [("ca", 4), ("ca", 8), ("ca", 16), ("cg", 16)])
def test_a_copy_writes_zeros_for_the_bytes_it_does_not_read(level, size):
    """Thread t reads t % (size + 1) bytes, the last thread all."""
    stored = run(
        f"""
        mad.lo.u32 %mine, %tid, {size}, %room; mad.wide.u32 %d1, %tid, {size}, %given;
        rem.u32 %r2, %tid, {size + 1}; setp.eq.u32 %p1, %tid, 31; @%p1 mov.u32 %r2, {size};
        cp.async.{level}.shared.global.L2::128B [%mine], [%d1], {size}, %r2;
        cp.async.commit_group; cp.async.wait_group 0; bar.sync 0;
        mad.lo.u32 %mine, %tid, 4, %room; ld.shared.u32 %r1, [%mine];
        """ + STORE, given=BYTES, shared_bytes=32 * size,
    )  # fmt: skip
    expected = np.frombuffer(BYTES, np.uint8)[: 32 * size].reshape(32, size).copy()
    for thread, row in enumerate(expected[:31]):
        row[thread % (size + 1) :] = 0
    assert np.array_equal(stored, expected.reshape(-1).view(np.uint32)[:32])


def test_the_earlier_of_two_copies_can_be_waited_for_alone():
    stored = run(
        """
        mad.wide.u32 %d1, %tid, 4, %given;
        cp.async.ca.shared.global [%mine], [%d1], 4; cp.async.commit_group;
        cp.async.ca.shared.global [%mine+128], [%d1+128], 4; cp.async.commit_group;
        cp.async.wait_group 1; ld.shared.u32 %r1, [%mine];
        cp.async.wait_group 0; ld.shared.u32 %r2, [%mine+128]; mad.lo.u32 %r1, %r2, 1000, %r1;
        """ + STORE, given=GIVEN, shared_bytes=256,
    )  # fmt: skip
    assert stored.tolist() == [1000 * (tid + 32) + tid for tid in range(32)]


def test_every_space_has_a_window_among_generic_addresses():
    stored = run(
        """
        .local .align 8 .b8 depot[16];
        mov.u64 %d1, depot; cvta.local.u64 %d1, %d1; st.u32 [%d1+4], %tid;
        cvt.u64.u32 %d2, %mine; cvta.shared.u64 %d2, %d2; ld.u32 %r2, [%d1+4]; st.u32 [%d2], %r2;
        bar.sync 0; setp.lt.u32 %p1, %tid, 16; selp.b64 %d3, %d1, %d2, %p1; add.u64 %d3, %d3, 4; sub.u64 %d4, %d3, 4;
        selp.b64 %d3, %d3, %d4, %p1; ld.u32 %r1, [%d3]; mad.wide.u32 %d4, %tid, 4, %given; ld.u32 %r3, [%d4];
        add.u32 %r1, %r1, %r3;
        """ + STORE, given=GIVEN,
    )  # fmt: skip
    assert stored.tolist() == [2 * tid for tid in range(32)]


def test_loads_extend_and_stores_truncate():
    bytes_of = np.array([0x80, 0x7F, 0xFF, 0x01] * 8, np.uint8).tobytes()
    load = "cvt.u64.u32 %d1, %tid; add.u64 %d1, %d1, %given; ld.global.{} %r1, [%d1];"
    assert run(load.format("u8") + STORE, given=bytes_of).tolist() == [0x80, 0x7F, 0xFF, 0x01] * 8
    assert run(load.format("s8") + STORE, given=bytes_of).view(np.int32).tolist() == [-128, 127, -1, 1] * 8
    halves = "mov.b32 {%h1, %h2}, 0x12345678; st.global.v2.u16 [%at], {%h2, %h1};"
    assert run(halves).tolist() == [0x56781234] * 32


def test_braces_open_a_scope_of_names():
    two, three = "{ .reg .b32 %r1; mov.u32 %r1, 2; ", "{ .reg .b32 %r1; mov.u32 %r1, 3; }"
    inner = "mov.u32 %r1, 1;" + two + three + "st.shared.u32 [%mine], %r1; }"
    assert run(inner + "ld.shared.u32 %r2, [%mine]; mad.lo.u32 %r1, %r2, 10, %r1;" + STORE).tolist() == [21] * 32


def counted(body, **options):
    profile = Profile()
    run(body, given=bytes(1 << 14), profile=profile, **options)
    return profile


@pytest.mark.parametrize(
    ("apart", "size", "sectors"), [(4, 4, 4), (8, 4, 8), (32, 4, 32), (256, 4, 32), (0, 4, 1), (16, 16, 16), (2, 2, 2)]
)
def test_sectors_are_counted_for_each_warp(apart, size, sectors):
    load = {2: "ld.global.u16 %h1, [%d1];", 4: "ld.global.f32 %f1, [%d1];"}.get(size)
    load = load or "ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%d1];"
    profile = counted(f"and.b32 %r1, %tid, 31; mad.wide.u32 %d1, %r1, {apart}, %given;" + load, threads=64)
    assert profile.sectors["ld global"] == 2 * sectors
    assert profile.requested["ld global"] == 64 * size


@pytest.mark.parametrize(("apart", "passes"), [(1, 1), (2, 2), (3, 1), (32, 32), (33, 1), (0, 1), (16, 16)])
def test_bank_conflicts_are_counted(apart, passes):
    load = "mul.lo.u32 %r1, %tid, 4; add.u32 %r1, %r1, %room;"
    fill = "mov.u32 %r2, 0; on: st.shared.u32 [%r1], 0; add.u32 %r1, %r1, 128; add.u32 %r2, %r2, 1;"
    fill += f"setp.lt.u32 %p1, %r2, 34; @%p1 bra on; bar.sync 0; mad.lo.u32 %r1, %tid, {4 * apart}, %room;"
    profile = counted(load + fill + "ld.shared.f32 %f1, [%r1];", shared_bytes=34 * 128)
    assert (profile.passes["ld shared"], profile.fewest_passes["ld shared"]) == (passes, 1)
    assert profile.passes["st shared"] == profile.fewest_passes["st shared"] == 34


def test_an_instruction_counts_once_for_each_warp_that_has_a_thread_at_it():
    body = "setp.lt.u32 %p1, %tid, 40; @%p1 bra on; add.rn.f32 %f1, %f1, %f1; on: mul.rn.f32 %f1, %f1, %f1;"
    assert counted(body, threads=96).instructions["float32"] == 2 + 3
