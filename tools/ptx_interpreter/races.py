"""Who may touch which bytes when: every two accesses of which one writes, by two threads, need a barrier between them.

Barriers come in three sizes (warp, block, cluster), each waits for all of its threads, and each is part of the next. So
it is enough to know, of a piece of memory's last write and of the reads since, at which turn of each barrier they were,
and the smallest of thread, warp, block and cluster that they all were in. Knows nothing of addresses or instructions.
"""

import numpy as np

THREAD, WARP, BLOCK, CLUSTER = range(4)
# Later than every turn of a barrier: what other clusters do comes neither before nor after.
NEVER = np.iinfo(np.int32).max


class Clock:
    """The turns of the barriers. Between arriving at a cluster's barrier and the wait for it, a thread's accesses
    belong to the next turn for who comes after, but are not yet behind this one.
    """

    def __init__(self, blocks, threads):
        self.threads = threads
        lanes = blocks * threads
        # How many barriers of the cluster each thread has arrived at and waited for, and how many all have.
        self.arrived, self.passed = np.zeros(lanes, np.int32), np.zeros(lanes, np.int32)
        self.behind = 0
        self.block, self.warp = np.zeros(blocks, np.int32), np.zeros(lanes // 32, np.int32)

    def reset(self):
        self.behind = 0
        for each in (self.arrived, self.passed, self.block, self.warp):
            each[:] = 0

    def name(self, lane):
        return f"block {lane // self.threads} thread {lane % self.threads}"


class Accesses:
    """Of each piece of memory, the last write, or the reads since."""

    def __init__(self, size):
        self.turn, self.block, self.warp, self.lane = (np.full(size, -1, np.int32) for _ in range(4))
        self.among = np.zeros(size, np.int8)

    def clash(self, at, lanes, clock):
        """Whether these may go on at the same time as what `lanes` do now."""
        turn = self.turn[at]
        if turn.max() < 0:
            return None
        lane, among = self.lane[at], self.among[at]
        warps, blocks = lanes >> 5, lanes // clock.threads
        warp = (lane >> 5 != warps) | (self.warp[at] == clock.warp[warps]) & ((among >= WARP) | (lane != lanes))
        warp |= among >= BLOCK
        block = (lane // clock.threads != blocks) | (self.block[at] == clock.block[blocks]) & warp
        return (turn >= clock.passed[lanes]) & (block | (among >= CLUSTER))

    def set(self, at, lanes, clock):
        self.turn[at] = clock.arrived[lanes]
        self.block[at] = clock.block[lanes // clock.threads]
        self.warp[at] = clock.warp[lanes >> 5]
        self.lane[at] = lanes
        self.among[at] = THREAD

    def add(self, at, lanes, among, latest, clock):
        """Further ones, each piece once: by the lane, or by several of its warp, its block or its cluster, in no later
        turn than the `latest`."""
        turn, block, warp, lane = self.turn[at], self.block[at], self.warp[at], self.lane[at]
        held = self.among[at]
        now = np.where(among == THREAD, clock.arrived[lanes], latest)
        now_block, now_warp = clock.block[lanes // clock.threads], clock.warp[lanes >> 5]
        # What all have passed cannot go on at the same time as anything.
        fresh = (turn < clock.behind) | (turn < 0)
        same_block = ~fresh & (lane // clock.threads == lanes // clock.threads) & (held < CLUSTER)
        fresh |= same_block & (block < now_block)
        same_warp = same_block & (lane >> 5 == lanes >> 5) & (held < BLOCK)
        later = same_warp & (warp < now_warp)
        same_lane = same_warp & (lane == lanes) & (held < WARP)
        joined = np.where(same_lane | later, THREAD, np.where(same_warp, WARP, np.where(same_block, BLOCK, CLUSTER)))
        self.among[at] = np.where(fresh, among, np.maximum(np.maximum(joined, among), np.where(later, THREAD, held)))
        self.turn[at] = np.maximum(turn, now)
        self.block[at], self.warp[at] = now_block, now_warp
        self.lane[at] = lanes

    def hold_back(self, turn, blocks, clock):
        of_them = np.isin(self.lane // clock.threads, blocks) | (self.among == CLUSTER)
        self.turn[(self.turn == turn) & of_them] += 1

    def forget_turns(self):
        self.turn[self.turn >= 0] = NEVER
        self.among[:] = CLUSTER


class Tracker:
    """Memory in pieces of `grain` bytes. Each method returns None, or which access is wrong, and why."""

    def __init__(self, size, grain, filled=False):
        self.grain = grain
        pieces = -(-size // grain)
        self.filled = np.full(pieces, filled)
        # Whom a copy that is under way belongs to.
        self.copied_by = np.full(pieces, -1, np.int32)
        self.writes, self.reads = Accesses(pieces), Accesses(pieces)
        self.first = np.empty(pieces, np.int32)
        self.last = np.empty(pieces, np.int32)

    def pieces(self, offsets, size):
        """The pieces of `size` bytes from each offset on: a row for each."""
        first = offsets // self.grain
        many = max(1, size // self.grain)
        return first if many == 1 else first[:, None] + np.arange(many)

    def read(self, at, lanes, clock):
        if (wrong := self._under_way(at, clock)) is not None:
            return wrong
        if not (filled := self.filled[at]).all():
            return np.argmin(filled), "nobody wrote there"
        if (wrong := self._race(self.writes, at, lanes, clock, "wrote")) is not None:
            return wrong
        # Lanes are in order; of those that read the same piece this keeps the last and the first.
        self.last[at] = lanes
        self.first[at[::-1]] = lanes[::-1]
        latest = clock.arrived[lanes].max()
        alone = self.first[at] == lanes
        at, lanes = at[alone], lanes[alone]
        last = self.last[at]
        among = np.where(
            last == lanes,
            THREAD,
            np.where(
                last >> 5 == lanes >> 5,
                WARP,
                np.where(last // clock.threads == lanes // clock.threads, BLOCK, CLUSTER),
            ),
        )
        self.reads.add(at, lanes, among, latest, clock)
        return None

    def write(self, at, lanes, clock):
        wrong = self._prepare(at, lanes, clock)
        if wrong is None:
            self._written(at, lanes, clock)
        return wrong

    def begin_copy(self, at, lanes, clock):
        wrong = self._prepare(at, lanes, clock)
        if wrong is None:
            self.copied_by[at] = lanes
        return wrong

    def end_copy(self, at, lanes, clock):
        self.copied_by[at] = -1
        self._written(at, lanes, clock)

    def hold_back(self, turn, blocks, clock):
        self.writes.hold_back(turn, blocks, clock)
        self.reads.hold_back(turn, blocks, clock)

    def end_of_cluster(self):
        self.writes.forget_turns()
        self.reads.forget_turns()

    def _prepare(self, at, lanes, clock):
        if (wrong := self._under_way(at, clock)) is not None:
            return wrong
        self.last[at] = lanes
        if not (same := self.last[at] == lanes).all():
            which = np.argmin(same)
            return which, f"{clock.name(self.last[at][which])} writes there at once"
        wrong = self._race(self.writes, at, lanes, clock, "wrote")
        return self._race(self.reads, at, lanes, clock, "read") if wrong is None else wrong

    def _written(self, at, lanes, clock):
        self.filled[at] = True
        self.writes.set(at, lanes, clock)
        self.reads.turn[at] = -1

    def _under_way(self, at, clock):
        by = self.copied_by[at]
        if by.max() < 0:
            return None
        return np.argmax(by), f"a copy to there is under way, and {clock.name(by.max())} did not wait for it yet"

    def _race(self, accesses, at, lanes, clock, done):
        clash = accesses.clash(at, lanes, clock)
        if clash is None or not clash.any():
            return None
        which = np.argmax(clash)
        piece = at[which]
        other = "another cluster" if accesses.turn[piece] == NEVER else clock.name(accesses.lane[piece])
        return which, f"a race: no barrier since {other} {done} there"
