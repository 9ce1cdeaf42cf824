"""How threads wait for each other: at instructions of a whole warp, and at the barriers of blocks and clusters.

As in PTX, no thread waits for a thread that has exited.
"""

import numpy as np

from .faults import Fault

RUNNING, MEETING, AT_BLOCK, AT_CLUSTER, EXITED = range(5)
ALL_LANES = 0xFFFFFFFF
# What a step returns if its group ends with it: its threads wait, exited, or go on in other groups.
STOPPED = -1


class Synchronization:
    """The waiting threads of a cluster. `resume(lanes, pc)` lets threads go on; `code` is for messages."""

    def __init__(self, clock, code, resume):
        self.clock, self.code, self.resume = clock, code, resume
        self.lanes = np.arange(clock.arrived.size)
        self.actions = {}
        self.reset()

    def reset(self):
        self.clock.reset()
        lanes, blocks = self.lanes.size, self.clock.block.size
        self.state, self.pc = np.zeros(lanes, np.int8), np.zeros(lanes, np.int64)
        self.members = np.zeros(lanes, np.int64)
        self.alive, self.alive_of_warp = lanes, np.full(lanes // 32, 32)
        self.phase = 0
        # Per block: the last phase of the cluster's barrier in which another block accessed its memory, and by what.
        self.last_access_phase, self.accessor = np.full(blocks, -1), [None] * blocks
        self.ended = np.zeros(blocks, bool)
        # Warps that diverged and have not met at a barrier since.
        self.diverged = np.zeros(lanes // 32, bool)

    def meet(self, group, pc, members, action):
        """Run `action(lanes)` once all `members` of a warp have reached this instruction.

        If the action returns STOPPED, its threads do not go on by themselves.
        """
        full = np.all(members == ALL_LANES)
        if full and (group.mask is True or self._whole(group.lanes)):
            return action(group.lanes)
        self._park(group.lanes, MEETING, pc)
        self.members[group.lanes] = members
        self.actions[pc] = action
        for warp in np.unique(group.lanes >> 5):
            self._try_meeting(warp)
        return STOPPED

    def diverge(self, lanes, others):
        """`lanes` and `others` go on at different instructions."""
        in_lanes, in_others = np.zeros((2, self.diverged.size), bool)
        in_lanes[lanes >> 5] = in_others[others >> 5] = True
        self.diverged |= in_lanes & in_others

    def require_converged(self, lanes, pc):
        diverged = self.diverged[lanes >> 5]
        if diverged.any():
            name = self.clock.name(lanes[np.argmax(diverged)])
            raise Fault(f"{self.code[pc]}: {name}: its warp diverged at a branch, and no barrier has joined it since")

    def _whole(self, lanes):
        count = np.bincount(lanes >> 5, minlength=self.alive_of_warp.size)
        return bool(((count == 0) | (count == self.alive_of_warp)).all())

    def _park(self, lanes, state, pc):
        self.state[lanes] = state
        self.pc[lanes] = pc

    def _try_meeting(self, warp):
        lanes = self.lanes[32 * warp : 32 * warp + 32]
        meeting = lanes[self.state[lanes] == MEETING]
        for pc, members in {(int(self.pc[lane]), int(self.members[lane])) for lane in meeting}:
            arrived = meeting[(self.pc[meeting] == pc) & (self.members[meeting] == members)]
            expected = lanes[(members >> (lanes & 31) & 1 == 1) & (self.state[lanes] != EXITED)]
            if outside := set(arrived) - set(expected):
                raise Fault(f"{self.code[pc]}: {self.clock.name(min(outside))}: is not in its own member mask")
            if arrived.size == expected.size:
                self.state[arrived] = RUNNING
                if self.actions[pc](arrived) is None:
                    self.resume(arrived, pc + 1)

    def at_block(self, lanes, pc):
        """bar.sync: wait for all threads of the block; those of a warp must be at the same instruction."""
        self._park(lanes, AT_BLOCK, pc)
        for block in np.unique(lanes // self.clock.threads):
            self._try_block(block)
        return STOPPED

    def _try_block(self, block):
        threads = self.clock.threads
        lanes = self.lanes[block * threads : (block + 1) * threads]
        waiting = self.state[lanes] == AT_BLOCK
        if not waiting.any() or not (waiting | (self.state[lanes] == EXITED)).all():
            return
        lanes = lanes[waiting]
        pc = self.pc[lanes]
        for pc_of_group in np.unique(pc) if pc.min() != pc.max() else ():
            if self.code[pc_of_group].opcode not in ("barrier.sync", "barrier.cta.sync") and not self._whole(
                lanes[pc == pc_of_group]
            ):
                raise Fault(f"{self.code[pc_of_group]}: threads of a warp are at different barriers")
        self.clock.block[block] += 1
        self.diverged[lanes >> 5] = False
        self.state[lanes] = RUNNING
        for pc_of_group in np.unique(pc):
            self.resume(lanes[pc == pc_of_group], int(pc_of_group) + 1)

    def arrive_at_cluster(self, lanes, pc):
        twice = self.clock.arrived[lanes] != self.clock.passed[lanes]
        if twice.any():
            name = self.clock.name(lanes[np.argmax(twice)])
            raise Fault(f"{self.code[pc]}: {name}: it arrived twice without a wait")
        self.clock.arrived[lanes] += 1
        self._try_cluster()

    def defer_accesses(self, lanes, trackers):
        """A relaxed arrival orders nothing: the accesses of these threads' blocks count for the next phase."""
        phase, blocks = self.clock.arrived[lanes].max(), np.unique(lanes // self.clock.threads)
        for tracker in trackers:
            tracker.defer_accesses(phase, blocks, self.clock)
        self.last_access_phase[self.last_access_phase == phase] += 1

    def wait_at_cluster(self, lanes, pc):
        never = self.clock.arrived[lanes] == self.clock.passed[lanes]
        if never.any():
            name = self.clock.name(lanes[np.argmax(never)])
            raise Fault(f"{self.code[pc]}: {name}: it waits without having arrived")
        self._park(lanes, AT_CLUSTER, pc)
        self._try_cluster()
        return STOPPED

    def _try_cluster(self):
        clock = self.clock
        alive = self.state != EXITED
        if alive.any() and (clock.arrived[alive] > self.phase).all():
            self.phase += 1
        lanes = self.lanes[(self.state == AT_CLUSTER) & (clock.passed < self.phase)]
        if lanes.size:
            clock.passed[lanes] += 1
            clock.passed_by_all = clock.passed[alive].min()
            self.state[lanes] = RUNNING
            for pc_of_group in np.unique(self.pc[lanes]):
                self.resume(lanes[self.pc[lanes] == pc_of_group], int(pc_of_group) + 1)

    def meet_all(self, lanes, pc):
        """bar.warp.sync, for all running threads of a warp."""
        self.clock.warp[np.unique(lanes >> 5)] += 1
        self.diverged[lanes >> 5] = False

    def access_other_block(self, access, lanes, blocks, addresses):
        """Check that a block whose shared memory is accessed has begun and not ended."""
        not_begun = self.clock.passed[lanes] == 0
        access.refuse(not_begun, lanes, addresses, "no barrier of the cluster ensures that that block has begun")
        access.refuse(self.ended[blocks], lanes, addresses, "that block has ended")
        for block in np.unique(blocks):
            accessing = lanes[blocks == block]
            self.last_access_phase[block] = max(self.last_access_phase[block], self.clock.arrived[accessing].max())
            self.accessor[block] = access.instruction, accessing[0]

    def exit(self, lanes):
        self.state[lanes] = EXITED
        self.alive -= lanes.size
        np.subtract.at(self.alive_of_warp, lanes >> 5, 1)
        threads = self.clock.threads
        for block in np.unique(lanes // threads):
            self._try_block(block)
            own = slice(block * threads, (block + 1) * threads)
            if (self.state[own] == EXITED).all():
                self.ended[block] = True
                if self.last_access_phase[block] >= self.clock.passed[own].max():
                    instruction, lane = self.accessor[block]
                    raise Fault(f"{instruction}: {self.clock.name(lane)}: block {block} may end before it is read")
        for warp in np.unique(lanes >> 5):
            self._try_meeting(warp)
        self._try_cluster()
        return STOPPED

    def require_all_exited(self):
        """At the end all threads must have exited; else they wait for each other."""
        waiting = self.lanes[self.state != EXITED]
        if waiting.size:
            places = []
            for pc_of_group in np.unique(self.pc[waiting]):
                lanes = waiting[self.pc[waiting] == pc_of_group]
                places.append(f"{lanes.size} ({self.clock.name(lanes[0])}, ...) at {self.code[pc_of_group]}")
            raise Fault(f"threads wait for each other forever: {'; '.join(places)}")
