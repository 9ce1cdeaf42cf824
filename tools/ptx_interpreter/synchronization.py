"""Threads that wait for others: meetings of a warp, barriers of a block and of a cluster, and who has gone home.

As PTX has it, a thread that has exited is waited for no longer. Knows nothing of what is done at a meeting.
"""

import numpy as np

from .faults import Fault

RUNNING, MEETING, AT_BLOCK, AT_CLUSTER, EXITED = range(5)
EVERYONE = 0xFFFFFFFF
# What a step answers when its threads do not go on to the next instruction by themselves.
GONE = -1


class Waiting:
    """`resume(lanes, at)` lets threads go on from an instruction; `code` is for messages."""

    def __init__(self, clock, code, resume):
        self.clock, self.code, self.resume = clock, code, resume
        self.lanes = np.arange(clock.arrived.size)
        self.acts = {}
        self.reset()

    def reset(self):
        self.clock.reset()
        lanes, blocks = self.lanes.size, self.clock.block.size
        self.state, self.at = np.zeros(lanes, np.int8), np.zeros(lanes, np.int64)
        self.members = np.zeros(lanes, np.int64)
        self.alive, self.alive_of_warp = lanes, np.full(lanes // 32, 32)
        self.turn = 0
        # The latest turn of the cluster's barrier in which another block read this one's memory, and who did.
        self.reached, self.reader = np.full(blocks, -1), [None] * blocks
        self.ended = np.zeros(blocks, bool)
        # Warps whose threads have gone different ways, and were not made to meet since.
        self.parted = np.zeros(lanes // 32, bool)

    def meet(self, group, at, members, act):
        """All threads of each warp that are `members` come to one instruction and act together, however late some are.
        `act` takes the lanes, and answers whether they stay."""
        full = np.all(members == EVERYONE)
        if full and (group.mask is True or self._whole(group.lanes)):
            return act(group.lanes)
        self._park(group.lanes, MEETING, at)
        self.members[group.lanes] = members
        self.acts[at] = act
        for warp in np.unique(group.lanes >> 5):
            self._try_meeting(warp)
        return GONE

    def part(self, lanes, others):
        """These go one way, the others another."""
        here, there = np.zeros((2, self.parted.size), bool)
        here[lanes >> 5] = there[others >> 5] = True
        self.parted |= here & there

    def must_be_together(self, lanes, at):
        parted = self.parted[lanes >> 5]
        if parted.any():
            name = self.clock.name(lanes[np.argmax(parted)])
            raise Fault(f"{self.code[at]}: {name}: its warp parted at a branch, and nothing says that it met again")

    def _whole(self, lanes):
        count = np.bincount(lanes >> 5, minlength=self.alive_of_warp.size)
        return bool(((count == 0) | (count == self.alive_of_warp)).all())

    def _park(self, lanes, state, at):
        self.state[lanes] = state
        self.at[lanes] = at

    def _try_meeting(self, warp):
        lanes = self.lanes[32 * warp : 32 * warp + 32]
        meeting = lanes[self.state[lanes] == MEETING]
        for at, members in {(int(self.at[each]), int(self.members[each])) for each in meeting}:
            there = meeting[(self.at[meeting] == at) & (self.members[meeting] == members)]
            wanted = lanes[(members >> (lanes & 31) & 1 == 1) & (self.state[lanes] != EXITED)]
            if outside := set(there) - set(wanted):
                raise Fault(f"{self.code[at]}: {self.clock.name(min(outside))}: is not a member itself")
            if there.size == wanted.size:
                self.state[there] = RUNNING
                if self.acts[at](there) is None:
                    self.resume(there, at + 1)

    def at_block(self, lanes, at):
        """bar.sync: until all threads of the block have come, those of a warp to the same instruction."""
        self._park(lanes, AT_BLOCK, at)
        for block in np.unique(lanes // self.clock.threads):
            self._try_block(block)
        return GONE

    def _try_block(self, block):
        threads = self.clock.threads
        lanes = self.lanes[block * threads : (block + 1) * threads]
        here = self.state[lanes] == AT_BLOCK
        if not here.any() or not (here | (self.state[lanes] == EXITED)).all():
            return
        lanes = lanes[here]
        at = self.at[lanes]
        for where in np.unique(at) if at.min() != at.max() else ():
            if self.code[where].opcode not in ("barrier.sync", "barrier.cta.sync") and not self._whole(
                lanes[at == where]
            ):
                raise Fault(f"{self.code[where]}: threads of a warp came to different barriers")
        self.clock.block[block] += 1
        self.parted[lanes >> 5] = False
        self.state[lanes] = RUNNING
        for where in np.unique(at):
            self.resume(lanes[at == where], int(where) + 1)

    def arrive_at_cluster(self, lanes, at):
        twice = self.clock.arrived[lanes] != self.clock.passed[lanes]
        if twice.any():
            name = self.clock.name(lanes[np.argmax(twice)])
            raise Fault(f"{self.code[at]}: {name}: it has arrived before, and did not wait")
        self.clock.arrived[lanes] += 1
        self._try_cluster()

    def hold_back(self, lanes, trackers):
        """Before a relaxed arrival: what these threads did, and with it what their blocks did, is for the next turn."""
        turn, blocks = self.clock.arrived[lanes].max(), np.unique(lanes // self.clock.threads)
        for each in trackers:
            each.hold_back(turn, blocks, self.clock)
        self.reached[self.reached == turn] += 1

    def wait_at_cluster(self, lanes, at):
        never = self.clock.arrived[lanes] == self.clock.passed[lanes]
        if never.any():
            name = self.clock.name(lanes[np.argmax(never)])
            raise Fault(f"{self.code[at]}: {name}: it waits, and did not arrive")
        self._park(lanes, AT_CLUSTER, at)
        self._try_cluster()
        return GONE

    def _try_cluster(self):
        clock = self.clock
        alive = self.state != EXITED
        if alive.any() and (clock.arrived[alive] > self.turn).all():
            self.turn += 1
        lanes = self.lanes[(self.state == AT_CLUSTER) & (clock.passed < self.turn)]
        if lanes.size:
            clock.passed[lanes] += 1
            clock.behind = clock.passed[alive].min()
            self.state[lanes] = RUNNING
            for where in np.unique(self.at[lanes]):
                self.resume(lanes[self.at[lanes] == where], int(where) + 1)

    def meet_all(self, lanes, at):
        """bar.warp.sync, between all that are left of a warp."""
        self.clock.warp[np.unique(lanes >> 5)] += 1
        self.parted[lanes >> 5] = False

    def reach(self, access, lanes, blocks, addresses):
        """One block touches another's shared memory, which must be there."""
        unknown = self.clock.passed[lanes] == 0
        access.refuse(unknown, lanes, addresses, "no barrier of the cluster says that that block began")
        access.refuse(self.ended[blocks], lanes, addresses, "that block has ended")
        for block in np.unique(blocks):
            who = lanes[blocks == block]
            self.reached[block] = max(self.reached[block], self.clock.arrived[who].max())
            self.reader[block] = access.instruction, who[0]

    def exit(self, lanes):
        self.state[lanes] = EXITED
        self.alive -= lanes.size
        np.subtract.at(self.alive_of_warp, lanes >> 5, 1)
        threads = self.clock.threads
        for block in np.unique(lanes // threads):
            self._try_block(block)
            mine = slice(block * threads, (block + 1) * threads)
            if (self.state[mine] == EXITED).all():
                self.ended[block] = True
                if self.reached[block] >= self.clock.passed[mine].max():
                    instruction, lane = self.reader[block]
                    raise Fault(f"{instruction}: {self.clock.name(lane)}: block {block} may end before it is read")
        for warp in np.unique(lanes >> 5):
            self._try_meeting(warp)
        self._try_cluster()
        return GONE

    def must_be_over(self):
        """That nobody is left, when nobody can go on."""
        left = self.lanes[self.state != EXITED]
        if left.size:
            places = []
            for where in np.unique(self.at[left]):
                there = left[self.at[left] == where]
                places.append(f"{there.size} ({self.clock.name(there[0])}, ...) at {self.code[where]}")
            raise Fault(f"threads wait for each other for ever: {'; '.join(places)}")
