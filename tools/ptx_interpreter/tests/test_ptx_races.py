"""The race tracker finds exactly the accesses that no barrier separates, against vector clocks of every thread.

Races in kernels are in test_ptx_refusals.py.
"""

import numpy as np
import pytest
from ptx_interpreter.races import Clock, Tracker

# A change of the package leaves the interpreter as it is.
pytestmark = pytest.mark.slow

BLOCKS, THREADS, PIECES = 2, 64, 6
LANES = np.arange(BLOCKS * THREADS)


class VectorClocks:
    """A vector clock per thread; every access is compared with all accesses before it."""

    def __init__(self):
        self.knows = np.zeros((LANES.size, LANES.size), int)
        self.accesses = [[] for _ in range(PIECES)]

    def meet(self, lanes, known=None):
        joint = self.knows[lanes].max(0) if known is None else known
        self.knows[lanes] = np.maximum(self.knows[lanes], joint)

    def races(self, piece, lanes, writes):
        return (writes and lanes.size > 1) or any(
            (wrote or writes) and other != lane and self.knows[lane, other] < when
            for lane in lanes
            for other, when, wrote in self.accesses[piece]
        )

    def access(self, piece, lanes, writes):
        for lane in lanes:
            self.knows[lane, lane] += 1
            self.accesses[piece].append((lane, self.knows[lane, lane], writes))


class Run:
    """Makes the same random accesses and barriers for the tracker and for the vector clocks."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.clock, self.threads = Clock(BLOCKS, THREADS), VectorClocks()
        self.tracker = Tracker(4 * PIECES, 4, filled=True)

    def random_lanes(self):
        """One thread, or several of a warp, a block or the cluster."""
        size = self.random.choice([1, 1, 1, 32, THREADS, LANES.size])
        near = LANES[LANES // size == self.random.choice(LANES) // size]
        return near[np.sort(self.random.choice(near.size, min(near.size, self.random.integers(1, 5)), replace=False))]

    def access(self):
        """(race by the vector clocks, race by the tracker) of a random access; few of the accesses are races."""
        expected = True
        while expected:
            lanes, piece, writes = self.random_lanes(), self.random.integers(PIECES), self.random.random() < 0.4
            expected = self.threads.races(piece, lanes, writes)
            if self.random.random() < 0.02:
                break
        self.threads.access(piece, lanes, writes)
        method = self.tracker.write if writes else self.tracker.read
        return expected, method(np.full(lanes.size, piece), lanes, self.clock) is not None

    def barrier(self):
        size = self.random.choice([32, THREADS, LANES.size], p=[0.4, 0.4, 0.2])
        which = self.random.integers(LANES.size // size)
        self.threads.meet(LANES[LANES // size == which])
        if size == LANES.size:
            self.clock.arrived += 1
            self.pass_cluster(LANES)
        else:
            (self.clock.warp if size == 32 else self.clock.block)[which] += 1

    def pass_cluster(self, lanes):
        self.clock.passed[lanes] += 1
        self.clock.passed_by_all = self.clock.passed.min()


@pytest.mark.parametrize("seed", range(150))
def test_races_are_found_and_nothing_else_is(seed):
    run = Run(seed)
    for _ in range(80):
        if run.random.random() < 0.4:
            run.barrier()
            continue
        expected, detected = run.access()
        assert detected == expected
        if detected:
            return


@pytest.mark.parametrize("seed", range(150))
def test_races_are_found_between_arrival_and_wait_at_a_cluster_barrier(seed):
    """Accesses that only a third thread's barriers order may be reported as races, too."""
    run = Run(seed)
    for _ in range(20):
        arrived, passed = LANES[:0], LANES[:0]
        known = np.zeros(LANES.size, int)
        while passed.size < LANES.size:
            others = np.setdiff1d(LANES, arrived)
            step = run.random.random()
            if step < 0.2 and others.size:
                block = others[others // THREADS == run.random.choice(others) // THREADS]
                known = np.maximum(known, run.threads.knows[block].max(0))
                run.clock.arrived[block] += 1
                arrived = np.union1d(arrived, block)
            elif step < 0.4 and not others.size:
                left = np.setdiff1d(LANES, passed)
                block = left[left // THREADS == run.random.choice(left) // THREADS]
                run.threads.meet(block, known)
                run.pass_cluster(block)
                passed = np.union1d(passed, block)
            else:
                expected, detected = run.access()
                assert detected or not expected
                if detected:
                    return
