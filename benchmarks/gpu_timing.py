"""When to measure and how often: a deadline, turns in interleaved rounds, and rotation among inputs.

Knows neither torch nor what is timed, so that it is tested without a device.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

# A contender whose turn takes longer than this many seconds takes FEW turns, so that the quick ones can have MANY.
SLOW = 0.25
FEW = 3
MANY = 20

PER_SECOND = {"ms": 1e3, "us": 1e6}

Seconds = Mapping[str, float]
TIME_WAS_UP = "time was up"


class NotMeasured(Exception):
    """There is nothing to measure, for the reason given."""


class Budget:
    """The seconds there are; what begins after the deadline is not begun."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._end = clock() + seconds

    def left(self) -> float:
        return max(0.0, self._end - self.clock())

    def over(self) -> bool:
        return self.left() == 0

    def share(self, parts: int, most: float) -> Budget:
        """A budget for one of ``parts`` pieces of work still to do, of at most ``most`` seconds."""
        return Budget(min(most, self.left() / max(1, parts)), self.clock)


def by_turns(
    turns: Mapping[str, Callable[[], Seconds]], share: Budget, whole: Budget
) -> dict[str, list[Seconds] | Exception]:
    """What the turns of each contender took, so that a drifting machine favours none: everyone once in each round.

    Rounds begin until ``share`` is over, but FEW at least; no turn begins once ``whole`` is over. Of a contender that
    fails, or has no turn, the exception.
    """
    found: dict[str, list[Seconds]] = {name: [] for name in turns}
    failed: dict[str, Exception] = {}
    longest = dict.fromkeys(turns, 0.0)
    for number in range(MANY):
        if number >= FEW and share.over():
            break
        for name, turn in turns.items():
            if whole.over() or name in failed or (number >= FEW and longest[name] > SLOW):
                continue
            start = whole.clock()
            try:
                found[name].append(turn())
            except Exception as error:
                failed[name] = error
            longest[name] = max(longest[name], whole.clock() - start)
    return {name: failed.get(name) or taken or NotMeasured(TIME_WAS_UP) for name, taken in found.items()}


def summary(turns: Sequence[Seconds], unit: str) -> dict[str, float]:
    """Least and median of all that the turns measured: {"host_us_least": ..., "host_us_median": ..., "rounds": 9}."""
    numbers: dict[str, float] = {}
    for name in turns[0]:
        taken = [turn[name] * PER_SECOND[unit] for turn in turns]
        numbers[f"{name}_{unit}_least"] = min(taken)
        numbers[f"{name}_{unit}_median"] = statistics.median(taken)
    return {**numbers, "rounds": len(turns)}


def calls_for(seconds_per_call: float, seconds: float, most: int) -> int:
    """How many calls fill ``seconds``: at least one."""
    return max(1, min(most, math.ceil(seconds / max(seconds_per_call, 1e-9))))


def sets_to_rotate(bytes_per_set: int, cache_bytes: int) -> int:
    """How many input sets it takes for none to be in the cache when its turn comes again: four caches full."""
    return max(1, math.ceil(4 * cache_bytes / bytes_per_set))


def rotation(sets: Iterable[Sequence[object]], run: Callable[..., object]) -> Callable[[int], None]:
    """A function that calls ``run`` so many times, going on around the sets where the last call of it ended."""
    around = itertools.cycle(list(sets))

    def calls(number: int) -> None:
        for chosen in itertools.islice(around, number):
            run(*chosen)

    return calls
