"""The PTX interpreter raises Fault for what a GPU would refuse, hang in, or silently get wrong.

For every fault there is the smallest kernel that has it, and the same kernel with the fault repaired, which runs.
"""

import numpy as np
import pytest
from ptx_interpreter import Fault, Unsupported
from small_kernels import run

# A change of the package leaves the interpreter as it is.
pytestmark = pytest.mark.slow

GIVEN = np.arange(64, dtype=np.uint32).tobytes()
ORDERS = ["together", "forwards", "backwards"]

WRITE_OWN = "st.shared.u32 [%mine], %tid;"
READ_NEXT = "ld.shared.u32 %r1, [%next]; st.global.u32 [%at], %r1;"
READ_FIRST = "ld.shared.u32 %r1, [%room]; st.global.u32 [%at], %r1;"
ARRIVE, WAIT = "barrier.cluster.arrive.release.aligned;", "barrier.cluster.wait.acquire.aligned;"
RELAXED, CLUSTER = "barrier.cluster.arrive.relaxed.aligned;", ARRIVE + WAIT
# Reads the word of the other of two blocks that is this thread's own in its block.
READ_OTHER = (
    "xor.b32 %r2, %block, 1; mapa.shared::cluster.u32 %r3, %mine, %r2; ld.shared::cluster.u32 %r1, [%r3];"
    "st.global.u32 [%at], %r1;"
)
COPY = "mad.wide.u32 %d1, %tid, 4, %given; cp.async.ca.shared.global [%mine], [%d1], 4;"
READ_OWN = "ld.shared.u32 %r1, [%mine]; st.global.u32 [%at], %r1;"
FIRST_THREAD = "setp.eq.u32 %p1, %tid, 0;"
LOWER_HALF = "setp.lt.u32 %p1, %tid, 16;"
NOBODY = "setp.lt.u32 %p1, %tid, 0;"
SHUFFLE = "shfl.sync.bfly.b32 %r1, %tid, 16, 31, -1;"
SYNC, SYNC_WARP = "bar.sync 0;", "bar.warp.sync -1;"
TWO_WARPS, TWO_BLOCKS, TWO_CLUSTERS = {"threads": 64}, {"blocks": 2}, {"clusters": 2}

# (before, repair, after, message, options): before + after has the fault, before + repair + after runs.
RACES = {
    "a neighbour in the warp": (WRITE_OWN, SYNC_WARP, READ_NEXT, "no barrier since block 0 thread 1 wrote this", {}),
    "a neighbour in another warp": (WRITE_OWN + SYNC_WARP, SYNC, READ_NEXT, "thread 32 wrote this", TWO_WARPS),
    "a shuffle is no barrier": (WRITE_OWN + SHUFFLE, SYNC_WARP, READ_NEXT, "thread 1 wrote this", {}),
    "written after it was read": (
        WRITE_OWN + SYNC + READ_FIRST + FIRST_THREAD, SYNC, "@%p1 st.shared.u32 [%room], 5;", "read this", TWO_WARPS,
    ),
    "written twice at once": ("", FIRST_THREAD + "@%p1 ", "st.shared.u32 [%room], 5;", "31 writes this", {}),
    "written twice": (WRITE_OWN, SYNC, "st.shared.u32 [%next], 5;", "no barrier since .* wrote this", TWO_WARPS),
    "another block": (
        WRITE_OWN + CLUSTER + "st.shared.u32 [%mine], 5;", CLUSTER, READ_OTHER + CLUSTER,
        "no barrier since block 1 thread 0 wrote this", TWO_BLOCKS,
    ),
    "another block, behind a barrier of one's own": (
        WRITE_OWN + CLUSTER + "st.shared.u32 [%mine], 5;" + SYNC, CLUSTER, READ_OTHER + CLUSTER,
        "no barrier since block 1 thread 0 wrote this", TWO_BLOCKS,
    ),
    "another block, that arrives without a release": (
        WRITE_OWN + RELAXED + WAIT, CLUSTER, READ_OTHER + CLUSTER, "since block 1 thread 0 wrote this", TWO_BLOCKS,
    ),
    "written after another block read it": (
        WRITE_OWN + CLUSTER + READ_OTHER + SYNC, CLUSTER, "st.shared.u32 [%mine], 5;" + CLUSTER,
        "no barrier since block 1 thread 0 read this", TWO_BLOCKS,
    ),
    "results of two blocks": (
        "ld.param.u64 %d1, [result];" + CLUSTER + FIRST_THREAD, "mov.u64 %d1, %at;", "@%p1 st.global.u32 [%d1], 5;",
        "block 1 thread 0 writes this", TWO_BLOCKS,
    ),
    "results of two clusters": (
        "ld.param.u64 %d1, [result];" + FIRST_THREAD, "mov.u64 %d1, %at;", "@%p1 st.global.u32 [%d1], 5;",
        "another cluster wrote this", TWO_CLUSTERS,
    ),
}  # fmt: skip
COPIES = {
    "never waited for": (COPY, "cp.async.wait_all;", READ_OWN, "a copy to this address", {}),
    "a group not waited for": (
        COPY + "cp.async.commit_group;", "cp.async.wait_group 0;", READ_OWN, "a copy to this address", {},
    ),
    "no group": (COPY, "cp.async.commit_group;", "cp.async.wait_group 0;" + READ_OWN, "a copy to this address", {}),
    "the last group, of which one may be left": (
        COPY + "cp.async.commit_group;", "cp.async.commit_group;", "cp.async.wait_group 1;" + READ_OWN,
        "a copy to this address", {},
    ),
    "waited for by one's own thread only": (COPY + "cp.async.wait_all;", SYNC_WARP, READ_NEXT, "a race", {}),
    "to what is still read": (WRITE_OWN + SYNC + READ_NEXT, SYNC, COPY, "no barrier since .* read this", {}),
    "to where one is pending": (COPY, "cp.async.wait_all;", COPY, "a copy to this address", {}),
    "to where a number is stored": (COPY, "cp.async.wait_all;", WRITE_OWN, "a copy to this address", {}),
}  # fmt: skip
ADDRESSES = {
    "beyond what is given": (
        "mad.wide.u32 %d1, %tid, 8, %given;", "mov.u64 %d1, %given;", "ld.global.u32 %r1, [%d1];",
        "block 0 thread 32: 4 bytes at 0x.*: not in any buffer", TWO_WARPS,
    ),
    "beyond the results": ("", "sub.u64 %at, %at, 4;", "st.global.u32 [%at+4], 1;", "thread 31: .*: not in any", {}),
    "beyond shared memory": (
        "", "sub.u32 %mine, %mine, 4;", "st.shared.u32 [%mine+4], 1;", "31: .*: not in the block's shared memory", {},
    ),
    "a copy from beyond what is given": (
        "add.u64 %given, %given, 132;", "sub.u64 %given, %given, 4;", COPY, "thread 31: .*: not in any buffer", {},
    ),
    "read-only memory": ("mov.u64 %d1, %given;", "mov.u64 %d1, %at;", "st.global.u32 [%d1], 1;", "read-only", {}),
    "a load that is not coherent with the writes": (
        "st.global.u32 [%at], 1; mov.u64 %d1, %at;", "mov.u64 %d1, %given;", "ld.global.nc.u32 %r1, [%d1];",
        "not coherent", {},
    ),
    "misaligned": ("add.u64 %d1, %given, 2;", "mov.u64 %d1, %given;", "ld.global.u32 %r1, [%d1];", "misaligned", {}),
    "a misaligned vector": (
        "add.u64 %d1, %given, 8;", "mov.u64 %d1, %given;", "ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%d1];",
        "16 bytes at .*: misaligned", {},
    ),
    "a misaligned copy": (
        FIRST_THREAD + "@!%p1 ret; add.u32 %mine, %room, 8;", "mov.u32 %mine, %room;",
        "cp.async.cg.shared.global [%mine], [%given], 16;", "misaligned", {},
    ),
    "shared memory that nobody wrote": ("", WRITE_OWN + SYNC, READ_FIRST, "no thread has written", {}),
    "results that nobody wrote": (
        "", "st.global.u32 [%at], 1;", "ld.global.u32 %r1, [%at];", "no thread has written", {},
    ),
    "a block that does not exist": (
        WRITE_OWN + CLUSTER + "xor.b32 %block, %block, 2;", "xor.b32 %block, %block, 2;", READ_OTHER + CLUSTER,
        "of a block that does not exist", TWO_BLOCKS,
    ),
    "a block that may not have begun": (WRITE_OWN, CLUSTER, READ_OTHER + CLUSTER, "that block has begun", TWO_BLOCKS),
    "a block that may have ended": (WRITE_OWN + CLUSTER + READ_OTHER, CLUSTER, "", "may end before it", TWO_BLOCKS),
}  # fmt: skip
WAITS = {
    "a barrier that some do not reach": (
        "setp.ge.u32 %p1, %tid, 32; @%p1 bra on;", SYNC, "bra.uni over; on: bar.sync 0; over:" + CLUSTER,
        "forever: 32 .block 0 thread 32, .* at .*bar.sync 0; 32 .block 0 thread 0, .* at .*cluster.wait", TWO_WARPS,
    ),
    "a barrier in a branch": (
        LOWER_HALF, NOBODY, "@%p1 bra on; bar.sync 0; bra.uni over; on: bar.sync 0; over:",
        "threads of a warp are at different barriers", {},
    ),
    "a cluster's barrier in a branch": (
        LOWER_HALF, NOBODY, "@%p1 bra on;" + CLUSTER + "bra.uni over; on:" + CLUSTER + "over:", "its warp diverged",
        TWO_BLOCKS,
    ),
    "a cluster's barrier behind a branch": (
        LOWER_HALF + "@%p1 bra on; mov.u32 %r1, 1; on:", SYNC_WARP, CLUSTER, "no barrier has joined it", TWO_BLOCKS,
    ),
    "a shuffle in a branch": (
        LOWER_HALF, NOBODY, "@%p1 bra on;" + SHUFFLE + "bra.uni over; on:" + SHUFFLE + "over:", "forever", {},
    ),
    "a shuffle with who has ended": (
        LOWER_HALF, NOBODY, "@%p1 ret;" + SHUFFLE, "thread 16: reads from .* 0, which does not take part", {},
    ),
    "a shuffle of others": (
        LOWER_HALF, NOBODY, "@%p1 bra on; bra.uni over; on: shfl.sync.bfly.b32 %r1, %tid, 1, 31, 0xFFFF0000; over:",
        "is not in its own member mask", {},
    ),
    "a uniform branch that is not": (LOWER_HALF, NOBODY, "@%p1 bra.uni on; on:", "its warp diverges", {}),
    "a wait without an arrival": ("", ARRIVE, WAIT, "without having arrived", {}),
    "an arrival after an arrival": (ARRIVE, WAIT, ARRIVE, "arrived twice without a wait", {}),
    "a loop without an end": ("again:", "bra.uni on;", "bra.uni again; on:", "more than 10000 instructions", {}),
}  # fmt: skip
FAULTS = {**RACES, **COPIES, **ADDRESSES, **WAITS}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named(name):
    before, _, after, message, options = FAULTS[name]
    with pytest.raises(Fault, match=message):
        run(before + after, **{"given": GIVEN, **options})


@pytest.mark.parametrize("order", ORDERS[1:])
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_refused_whichever_warp_runs_first(name, order):
    before, _, after, _, options = FAULTS[name]
    with pytest.raises(Fault):
        run(before + after, **{"given": GIVEN, **options}, order=order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", FAULTS)
def test_the_repaired_kernel_runs(name, order):
    before, repair, after, _, options = FAULTS[name]
    run(before + repair + after, **{"given": GIVEN, **options}, order=order)


def test_a_read_after_the_arrival_at_a_cluster_barrier_is_not_ordered_by_it():
    before, write = WRITE_OWN + CLUSTER, "st.shared.u32 [%mine], 5;" + CLUSTER
    with pytest.raises(Fault, match="a race"):
        run(before + ARRIVE + READ_OTHER + WAIT + write, blocks=2)
    with pytest.raises(Fault, match="may end before it is read"):
        run(before + ARRIVE + READ_OTHER + WAIT, blocks=2)
    run(before + READ_OTHER + ARRIVE + "st.global.u32 [%at], 1;" + WAIT + write, blocks=2)


def test_the_message_names_the_line():
    with pytest.raises(Fault, match=r"^line 3\d: ld\.global\.u32 %r1, \[%d1\]: block 0 thread 0: 4 bytes at 0x0: "):
        run("mov.u64 %d1, 0;\nld.global.u32 %r1, [%d1];")


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        ("ex2.approx.f32 %f1, %f2;", "ex2.approx.f32 %f1, %f2: this instruction is not supported"),
        ("atom.global.add.u32 %r1, [%at], 1;", "this instruction is not supported"),
        ("add.rn.ftz.f32 %f1, %f2, %f3;", "this form is not supported"),
        ("div.approx.f32 %f1, %f2, %f3;", "this form is not supported"),
        ("cvt.rz.f32.f64 %f1, %d2;", "this rounding is not supported"),
        ("add.s32 %d1, %d2, %d3;", "%d2 of .b64 cannot be used as int32"),
        ("mov.u32 %r1, %clock;", "%clock is not supported"),
        ("ld.acquire.gpu.global.u32 %r1, [%at];", ".acquire is not supported"),
    ],
)
def test_an_unsupported_instruction_is_named(instruction, message):
    with pytest.raises(Unsupported, match=message.replace(".", r"\.")):
        run(instruction)
