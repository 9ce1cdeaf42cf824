"""Race detection: two accesses by two threads, of which one writes, need a barrier between them.

Barriers have three scopes (warp, block, cluster), each joins all threads of its scope, and each scope is part of the
next. So for each piece of memory it is enough to keep, for the last write and for the reads since, the phase of each
barrier, and the smallest scope (thread, warp, block, cluster) that made these accesses.
"""

import numpy as np

THREAD, WARP, BLOCK, CLUSTER = range(4)
# Later than every phase of a barrier, because accesses of other clusters are never ordered.
NEVER = np.iinfo(np.int32).max


class Clock:
    """The phases of the barriers.

    Accesses between the arrival at a cluster's barrier and the wait for it belong to the next phase, and are not yet
    ordered by this one.
    """

    def __init__(self, blocks, threads):
        self.threads = threads
        lanes = blocks * threads
        # Barriers of the cluster that each thread has arrived at and waited for, and that all threads have waited for.
        self.arrived, self.passed = np.zeros(lanes, np.int32), np.zeros(lanes, np.int32)
        self.passed_by_all = 0
        self.block, self.warp = np.zeros(blocks, np.int32), np.zeros(lanes // 32, np.int32)

    def reset(self):
        self.passed_by_all = 0
        for phases in (self.arrived, self.passed, self.block, self.warp):
            phases[:] = 0

    def name(self, lane):
        return f"block {lane // self.threads} thread {lane % self.threads}"


class Accesses:
    """Per piece of memory: its last write, or the reads since."""

    def __init__(self, size):
        self.phase, self.block, self.warp, self.lane = (np.full(size, -1, np.int32) for _ in range(4))
        self.scope = np.zeros(size, np.int8)

    def clash(self, pieces, lanes, clock):
        """Whether the recorded accesses may be concurrent with an access by `lanes` now."""
        phase = self.phase[pieces]
        if phase.max() < 0:
            return None
        lane, scope = self.lane[pieces], self.scope[pieces]
        warps, blocks = lanes >> 5, lanes // clock.threads
        warp = (lane >> 5 != warps) | (self.warp[pieces] == clock.warp[warps]) & ((scope >= WARP) | (lane != lanes))
        warp |= scope >= BLOCK
        block = (lane // clock.threads != blocks) | (self.block[pieces] == clock.block[blocks]) & warp
        return (phase >= clock.passed[lanes]) & (block | (scope >= CLUSTER))

    def set(self, pieces, lanes, clock):
        self.phase[pieces] = clock.arrived[lanes]
        self.block[pieces] = clock.block[lanes // clock.threads]
        self.warp[pieces] = clock.warp[lanes >> 5]
        self.lane[pieces] = lanes
        self.scope[pieces] = THREAD

    def add(self, pieces, lanes, scope, latest, clock):
        """Add accesses, at most one per piece, by threads in the `scope` of a lane, no later than phase `latest`."""
        phase, block, warp, lane = self.phase[pieces], self.block[pieces], self.warp[pieces], self.lane[pieces]
        held_scope = self.scope[pieces]
        now = np.where(scope == THREAD, clock.arrived[lanes], latest)
        now_block, now_warp = clock.block[lanes // clock.threads], clock.warp[lanes >> 5]
        # Accesses before a barrier that all threads have passed are concurrent with nothing.
        fresh = (phase < clock.passed_by_all) | (phase < 0)
        same_block = ~fresh & (lane // clock.threads == lanes // clock.threads) & (held_scope < CLUSTER)
        fresh |= same_block & (block < now_block)
        same_warp = same_block & (lane >> 5 == lanes >> 5) & (held_scope < BLOCK)
        later = same_warp & (warp < now_warp)
        same_lane = same_warp & (lane == lanes) & (held_scope < WARP)
        joined = np.where(same_lane | later, THREAD, np.where(same_warp, WARP, np.where(same_block, BLOCK, CLUSTER)))
        self.scope[pieces] = np.where(
            fresh, scope, np.maximum(np.maximum(joined, scope), np.where(later, THREAD, held_scope))
        )
        self.phase[pieces] = np.maximum(phase, now)
        self.block[pieces], self.warp[pieces] = now_block, now_warp
        self.lane[pieces] = lanes

    def defer_accesses(self, phase, blocks, clock):
        deferred = np.isin(self.lane // clock.threads, blocks) | (self.scope == CLUSTER)
        self.phase[(self.phase == phase) & deferred] += 1

    def forget_phases(self):
        self.phase[self.phase >= 0] = NEVER
        self.scope[:] = CLUSTER


class Tracker:
    """Tracks memory in pieces of `grain` bytes. Checks return None, or (index of the wrong access, reason)."""

    def __init__(self, size, grain, filled=False):
        self.grain = grain
        pieces = -(-size // grain)
        self.filled = np.full(pieces, filled)
        # The lane whose copy is pending.
        self.copied_by = np.full(pieces, -1, np.int32)
        self.writes, self.reads = Accesses(pieces), Accesses(pieces)
        self.first = np.empty(pieces, np.int32)
        self.last = np.empty(pieces, np.int32)

    def pieces(self, offsets, size):
        """The pieces that `size` bytes at each offset cover; one row per offset if there are several."""
        first = offsets // self.grain
        many = max(1, size // self.grain)
        return first if many == 1 else first[:, None] + np.arange(many)

    def read(self, pieces, lanes, clock):
        if (wrong := self._pending_copy(pieces, clock)) is not None:
            return wrong
        if not (filled := self.filled[pieces]).all():
            return np.argmin(filled), "no thread has written this address"
        if (wrong := self._race(self.writes, pieces, lanes, clock, "wrote")) is not None:
            return wrong
        # Lanes are sorted, so this keeps the first and the last lane that reads each piece.
        self.last[pieces] = lanes
        self.first[pieces[::-1]] = lanes[::-1]
        latest = clock.arrived[lanes].max()
        alone = self.first[pieces] == lanes
        pieces, lanes = pieces[alone], lanes[alone]
        last = self.last[pieces]
        scope = np.where(
            last == lanes,
            THREAD,
            np.where(
                last >> 5 == lanes >> 5,
                WARP,
                np.where(last // clock.threads == lanes // clock.threads, BLOCK, CLUSTER),
            ),
        )
        self.reads.add(pieces, lanes, scope, latest, clock)
        return None

    def write(self, pieces, lanes, clock):
        wrong = self._prepare(pieces, lanes, clock)
        if wrong is None:
            self._written(pieces, lanes, clock)
        return wrong

    def begin_copy(self, pieces, lanes, clock):
        wrong = self._prepare(pieces, lanes, clock)
        if wrong is None:
            self.copied_by[pieces] = lanes
        return wrong

    def end_copy(self, pieces, lanes, clock):
        self.copied_by[pieces] = -1
        self._written(pieces, lanes, clock)

    def defer_accesses(self, phase, blocks, clock):
        self.writes.defer_accesses(phase, blocks, clock)
        self.reads.defer_accesses(phase, blocks, clock)

    def end_of_cluster(self):
        self.writes.forget_phases()
        self.reads.forget_phases()

    def _prepare(self, pieces, lanes, clock):
        if (wrong := self._pending_copy(pieces, clock)) is not None:
            return wrong
        self.last[pieces] = lanes
        if not (same := self.last[pieces] == lanes).all():
            first = np.argmin(same)
            return first, f"{clock.name(self.last[pieces][first])} writes this address at the same time"
        wrong = self._race(self.writes, pieces, lanes, clock, "wrote")
        return self._race(self.reads, pieces, lanes, clock, "read") if wrong is None else wrong

    def _written(self, pieces, lanes, clock):
        self.filled[pieces] = True
        self.writes.set(pieces, lanes, clock)
        self.reads.phase[pieces] = -1

    def _pending_copy(self, pieces, clock):
        by = self.copied_by[pieces]
        if by.max() < 0:
            return None
        return np.argmax(by), f"a copy to this address is pending, and {clock.name(by.max())} has not waited for it yet"

    def _race(self, accesses, pieces, lanes, clock, verb):
        clash = accesses.clash(pieces, lanes, clock)
        if clash is None or not clash.any():
            return None
        first = np.argmax(clash)
        piece = pieces[first]
        other = "another cluster" if accesses.phase[piece] == NEVER else clock.name(accesses.lane[piece])
        return first, f"a race: no barrier since {other} {verb} this address"
