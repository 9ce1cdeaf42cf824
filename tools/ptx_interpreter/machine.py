"""Runs a launch: one cluster of blocks after the other, and in each all threads, in groups.

A group is a set of threads at one instruction, which numpy runs for all of them at once. Groups split at branches, and
the one at the lowest instruction runs first, so that they join again.
"""

import numpy as np

from .access import compile_access, store_size
from .address_spaces import lay_out_spaces, special_registers
from .arithmetic import compile_arithmetic
from .async_copies import AsyncCopies, compile_copy
from .collectives import compile_collective
from .control_flow import compile_control_flow, guarded, guarded_branch
from .faults import Fault, Unsupported
from .profile import kind_of
from .races import Clock, Tracker
from .registers import Registers
from .synchronization import STOPPED, Synchronization

# The turn of a warp. Warps run together; or one after the other, each as far as the barriers allow.
ORDERS = {"together": lambda warp: 0 * warp, "forwards": lambda warp: warp, "backwards": lambda warp: -warp}


class ThreadGroup:
    """Threads at one instruction: their `lanes`, and the same as a `mask` (True for all running threads)."""

    __slots__ = ("lanes", "machine", "mask", "pc", "turn", "warps")

    def __init__(self, machine, lanes, pc, turn):
        self.machine, self.lanes, self.pc, self.turn = machine, lanes, pc, turn
        if lanes.size == machine.sync.alive:
            self.mask = True
            self.warps = np.count_nonzero(machine.sync.alive_of_warp)
        else:
            self.mask = np.zeros(machine.lanes.size, bool)
            self.mask[lanes] = True
            self.warps = np.count_nonzero(np.diff(lanes >> 5)) + 1

    def thread(self, index):
        return self.machine.clock.name(self.lanes[index])


class Launch:
    """One launch: `clusters` clusters of `blocks` blocks of `threads` threads; arguments are bytes or integers.

    A GlobalMemory serves one launch. A cluster that runs more than `limit` instructions counts as an endless loop;
    if the warps run one after the other, `limit` is per warp.
    """

    def __init__(
        self, kernel, memory, arguments, *, clusters=1, blocks=1, threads=256, shared_bytes=0, order="together",
        profile=None, limit=1_000_000,
    ):  # fmt: skip
        if threads % 32:
            raise Unsupported(f"blocks of {threads} threads: the number must be a multiple of 32")
        self.kernel, self.memory, self.profile, self.limit = kernel, memory, profile, limit
        self.clusters, self.blocks, self.order = clusters, blocks, ORDERS[order]
        self.lanes = np.arange(blocks * threads)
        self.clock = Clock(blocks, threads)
        self.sync = Synchronization(self.clock, kernel.code, self.resume)
        self.copies = AsyncCopies(self.lanes.size)
        self.grain = min(map(store_size, kernel.code))
        self.regions, names = lay_out_spaces(kernel, arguments, blocks, self.lanes.size, shared_bytes)
        specials = special_registers(self.lanes, threads, blocks, clusters)
        self.ctaid = specials["%ctaid.x"]
        self.registers = Registers(kernel, self.lanes.size, {**specials, **names})
        self.steps = [None] * len(kernel.code)
        self.executed = np.zeros(len(kernel.code), np.int64)
        for buffer in memory.buffers:
            buffer.tracker = Tracker(buffer.high, self.grain) if buffer.writable else None

    def run(self):
        with np.errstate(all="ignore"):
            for cluster in range(self.clusters):
                self.run_cluster(cluster)
        if self.profile is not None:
            for instruction, count in zip(self.kernel.code, self.executed, strict=True):
                self.profile.instructions[kind_of(instruction)] += int(count)

    def run_cluster(self, cluster):
        self.ctaid[:] = cluster * self.blocks + self.lanes // self.clock.threads
        self.registers.forget()
        self.sync.reset()
        self.copies.reset()
        for region in (self.regions["shared"], self.regions["local"]):
            region.bytes[:] = 0xFF
            region.tracker = Tracker(region.bytes.size, self.grain)
        self.groups = []
        self.resume(self.lanes, 0)
        self.instructions_left = self.limit * len(self.groups)
        while self.groups:
            self.advance(*self.take())
        self.sync.require_all_exited()
        for tracker in self.trackers():
            tracker.end_of_cluster()

    def trackers(self):
        regions = *self.memory.buffers, self.regions["shared"], self.regions["local"]
        return [region.tracker for region in regions if region.tracker is not None]

    def group(self, lanes, pc, turn):
        return ThreadGroup(self, lanes, pc, turn)

    def resume(self, lanes, pc):
        turns = self.order(lanes >> 5)
        for turn in np.unique(turns):
            self.groups.append(self.group(lanes[turns == turn], pc, turn))

    def take(self):
        """(group, until): the group that runs next, and the instruction of the group after it."""
        turn = min(group.turn for group in self.groups)
        lowest = min(group.pc for group in self.groups if group.turn == turn)
        chosen, others, until = [], [], len(self.steps)
        for group in self.groups:
            if group.turn == turn and group.pc == lowest:
                chosen.append(group)
                continue
            others.append(group)
            if group.turn == turn:
                until = min(until, group.pc)
        self.groups = others
        if len(chosen) == 1:
            return chosen[0], until
        lanes = np.sort(np.concatenate([group.lanes for group in chosen]))
        return ThreadGroup(self, lanes, lowest, turn), until

    def advance(self, group, until):
        """Run a group until it splits, waits, exits, or reaches the instruction of another group."""
        pc = group.pc
        while pc < until:
            begin, following = pc, None
            while following is None and pc < until:
                step = self.steps[pc] or self.compile(pc)
                following = step(group)
                pc += 1
            self.executed[begin:pc] += group.warps
            self.instructions_left -= pc - begin
            if self.instructions_left < 0:
                raise Fault(
                    f"{self.kernel.code[begin]}: {group.thread(0)}: more than {self.limit} instructions: endless?"
                )
            if following == STOPPED:
                return
            pc = pc if following is None else following
        if pc >= len(self.steps):
            raise Fault(f"{group.thread(0)}: it ran past the end of the kernel")
        group.pc = pc
        self.groups.append(group)

    def compile(self, pc):
        """The function that runs an instruction, made when a thread first reaches it."""
        instruction, registers = self.kernel.code[pc], self.registers
        step = (
            compile_arithmetic(instruction, registers)
            or compile_access(instruction, registers, self)
            or compile_copy(instruction, registers, self)
        )
        if step is not None:
            if instruction.guard is not None:
                step = guarded(instruction, step, self)
        else:
            step = compile_control_flow(instruction, self) or compile_collective(instruction, self, pc)
            if step is None:
                raise Unsupported(f"{instruction}: this instruction is not supported")
            if instruction.guard is not None:
                step = guarded_branch(instruction, step, self, pc)
        self.steps[pc] = step
        return step
