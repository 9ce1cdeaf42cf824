"""A launch: clusters of blocks one after the other, and in each all threads, a group at a time.

A group is threads at one instruction; numpy does it for all of them at once. Groups part at branches, and the one
furthest behind goes first, so that they meet again. What an instruction does is said elsewhere.
"""

import numpy as np

from .access import compile_access, stored_size
from .arithmetic import compile_arithmetic
from .copies import Copies, compile_copy
from .faults import Fault, Unsupported
from .flow import compile_flow, guarded, guarded_flow
from .layout import lay_out, special_registers
from .profile import kind_of
from .races import Clock, Tracker
from .registers import Registers
from .together import compile_together
from .waiting import GONE, Waiting

# Which warps run first, and whether all run together. One after the other, each runs as far ahead of those behind it
# as barriers let it.
ORDERS = {"together": lambda warp: 0 * warp, "forwards": lambda warp: warp, "backwards": lambda warp: -warp}


class Group:
    """Threads at one instruction: their `lanes`, and the same as a `mask` (True if nobody else would mind)."""

    __slots__ = ("at", "home", "lanes", "machine", "mask", "warps")

    def __init__(self, machine, lanes, at, home):
        self.machine, self.lanes, self.at, self.home = machine, lanes, at, home
        if lanes.size == machine.waiting.alive:
            self.mask = True
            self.warps = np.count_nonzero(machine.waiting.alive_of_warp)
        else:
            self.mask = np.zeros(machine.lanes.size, bool)
            self.mask[lanes] = True
            self.warps = np.count_nonzero(np.diff(lanes >> 5)) + 1

    def thread(self, which):
        return self.machine.clock.name(self.lanes[which])


class Launch:
    """A kernel, `clusters` times `blocks` blocks of `threads`; the arguments are bytes or whole numbers.

    A memory serves one launch. A cluster that is not at its end after `limit` instructions never will be; where warps
    run one after the other, after so many for each.
    """

    def __init__(
        self, kernel, memory, arguments, *, clusters=1, blocks=1, threads=256, shared_bytes=0, order="together",
        profile=None, limit=1_000_000,
    ):  # fmt: skip
        if threads % 32:
            raise Unsupported(f"blocks of {threads} threads: a part of a warp is not known")
        self.kernel, self.memory, self.profile, self.limit = kernel, memory, profile, limit
        self.clusters, self.blocks, self.order = clusters, blocks, ORDERS[order]
        self.lanes = np.arange(blocks * threads)
        self.clock = Clock(blocks, threads)
        self.waiting = Waiting(self.clock, kernel.code, self.resume)
        self.copies = Copies(self.lanes.size)
        self.grain = min(map(stored_size, kernel.code))
        self.regions, names = lay_out(kernel, arguments, blocks, self.lanes.size, shared_bytes)
        specials = special_registers(self.lanes, threads, blocks, clusters)
        self.ctaid = specials["%ctaid.x"]
        self.registers = Registers(kernel, self.lanes.size, {**specials, **names})
        self.steps = [None] * len(kernel.code)
        self.executed = np.zeros(len(kernel.code), np.int64)
        for each in memory.buffers:
            each.tracker = Tracker(each.high, self.grain) if each.writable else None

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
        self.waiting.reset()
        self.copies.reset()
        for each in (self.regions["shared"], self.regions["local"]):
            each.bytes[:] = 0xFF
            each.tracker = Tracker(each.bytes.size, self.grain)
        self.groups = []
        self.resume(self.lanes, 0)
        self.patience = self.limit * len(self.groups)
        while self.groups:
            self.advance(*self.take())
        self.waiting.must_be_over()
        for tracker in self.trackers():
            tracker.end_of_cluster()

    def trackers(self):
        regions = *self.memory.buffers, self.regions["shared"], self.regions["local"]
        return [each.tracker for each in regions if each.tracker is not None]

    def group(self, lanes, at, home):
        return Group(self, lanes, at, home)

    def resume(self, lanes, at):
        homes = self.order(lanes >> 5)
        for home in np.unique(homes):
            self.groups.append(self.group(lanes[homes == home], at, home))

    def take(self):
        """The group furthest behind of those whose turn it is, and where the next one is."""
        home = min(each.home for each in self.groups)
        behind = min(each.at for each in self.groups if each.home == home)
        chosen, others, until = [], [], len(self.steps)
        for each in self.groups:
            if each.home == home and each.at == behind:
                chosen.append(each)
                continue
            others.append(each)
            if each.home == home:
                until = min(until, each.at)
        self.groups = others
        if len(chosen) == 1:
            return chosen[0], until
        lanes = np.sort(np.concatenate([each.lanes for each in chosen]))
        return Group(self, lanes, behind, home), until

    def advance(self, group, until):
        """Runs a group until it parts, waits, ends, or comes to where others are."""
        at = group.at
        while at < until:
            begin, after = at, None
            while after is None and at < until:
                step = self.steps[at] or self.compile(at)
                after = step(group)
                at += 1
            self.executed[begin:at] += group.warps
            self.patience -= at - begin
            if self.patience < 0:
                raise Fault(f"{self.kernel.code[begin]}: {group.thread(0)}: more than {self.limit} instructions")
            if after == GONE:
                return
            at = at if after is None else after
        if at >= len(self.steps):
            raise Fault(f"{group.thread(0)}: it ran out of the kernel")
        group.at = at
        self.groups.append(group)

    def compile(self, at):
        """The function of an instruction, made when a thread first comes to it."""
        instruction, registers = self.kernel.code[at], self.registers
        step = (
            compile_arithmetic(instruction, registers)
            or compile_access(instruction, registers, self)
            or compile_copy(instruction, registers, self)
        )
        if step is not None:
            if instruction.guard is not None:
                step = guarded(instruction, step, self)
        else:
            step = compile_flow(instruction, self) or compile_together(instruction, self, at)
            if step is None:
                raise Unsupported(f"{instruction}: this instruction is not known")
            if instruction.guard is not None:
                step = guarded_flow(instruction, step, self, at)
        self.steps[at] = step
        return step
