"""Builds and runs kernels of a few lines of PTX."""

import numpy as np
from ptx_interpreter import GlobalMemory, Launch, Module

KERNEL = """
.version 9.0
.target sm_90
.address_size 64
.extern .shared .align 16 .b8 room[];

.visible .entry small(.param .u64 given, .param .u64 result)
{{
    .reg .pred %p<9>;
    .reg .b16 %h<9>;
    .reg .b32 %r<9>, %tid, %block, %room, %mine, %next;
    .reg .f32 %f<9>;
    .reg .b64 %d<9>, %given, %at;
    {declarations}
    ld.param.u64 %given, [given];
    ld.param.u64 %at, [result];
    mov.u32 %tid, %tid.x;
    mov.u32 %block, %cluster_ctarank;
    // %mine and %at: this thread's word in shared memory and among the results; %next: its right neighbour's.
    mov.u32 %room, room;
    mad.lo.u32 %mine, %tid, 4, %room;
    add.u32 %r8, %tid, 1;
    mov.u32 %r7, %ntid.x;
    rem.u32 %r8, %r8, %r7;
    mad.lo.u32 %next, %r8, 4, %room;
    mov.u32 %r8, %ctaid.x;
    mad.lo.u32 %r8, %r8, %r7, %tid;
    mad.wide.u32 %at, %r8, 4, %at;
    {body}
    ret;
}}
"""


def run(body, *, declarations="", given=bytes(4), results=None, blocks=1, clusters=1, threads=32, **options):
    """The 32-bit numbers that the threads stored at [%at]."""
    memory = GlobalMemory()
    results = 4 * clusters * blocks * threads if results is None else results
    addresses = memory.add(given, name="given"), memory.make(results, name="results")
    kernel = Module(KERNEL.format(body=body, declarations=declarations)).kernel("small")
    options = {"shared_bytes": 4 * threads, "limit": 10_000, **options}
    Launch(kernel, memory, addresses, blocks=blocks, clusters=clusters, threads=threads, **options).run()
    return memory.contents(addresses[1], np.uint32)[0]


def compute(operation, result, **operands):
    """The values of %z after `operation` on registers %a, %b, ..., given as (type, one number per thread)."""
    count = max(len(numbers) for _, numbers in operands.values())
    threads = -(-count // 32) * 32
    size = _size(result)
    declarations, loads, given = f".reg .{_register(result)} %z;", "", b""
    for name, (kind, numbers) in operands.items():
        # Surplus threads repeat the first number.
        padded = np.concatenate([numbers, np.repeat(numbers[:1], threads - count)])
        wide = _size(kind)
        declarations += f".reg .{_register(kind)} %{name};"
        loads += f"mad.wide.u32 %d1, %tid, {wide}, %given; ld.global.b{8 * wide} %{name}, [%d1+{len(given)}];"
        given += padded.tobytes()
        given += bytes(-len(given) % 16)
    store = f"ld.param.u64 %d1, [result]; mad.wide.u32 %d1, %tid, {size}, %d1; st.global.b{8 * size} [%d1], %z;"
    results = run(
        loads + operation + store, declarations=declarations, given=given, results=size * threads, threads=threads
    )
    return results.view(f"u{size}")[:count]


def _size(kind):
    return int(kind[1:]) // 8


def _register(kind):
    return f"b{max(16, int(kind[1:]))}"
