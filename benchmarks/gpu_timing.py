"""When and how often to measure: a time budget, interleaved rounds, and rotation among inputs. Needs no torch."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

# A contender whose turn takes longer than SLOW_SECONDS has only MIN_ROUNDS turns; fast ones have up to MAX_ROUNDS.
SLOW_SECONDS = 0.25
MIN_ROUNDS = 3
MAX_ROUNDS = 20

PER_SECOND = {"ms": 1e3, "us": 1e6}

Seconds = Mapping[str, float]
TIME_WAS_UP = "time was up"


class NotMeasured(Exception):
    """A measurement could not be made; the message is the reason."""


class Budget:
    """A deadline: nothing may start after it."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._end = clock() + seconds

    def left(self) -> float:
        return max(0.0, self._end - self.clock())

    def expired(self) -> bool:
        return self.left() == 0

    def share(self, parts: int, max_seconds: float) -> Budget:
        """A budget for one of ``parts`` equal parts of the remaining work, at most ``max_seconds``."""
        return Budget(min(max_seconds, self.left() / max(1, parts)), self.clock)


def interleave(
    turns: Mapping[str, Callable[[], Seconds]], row_budget: Budget, total_budget: Budget
) -> dict[str, list[Seconds] | Exception]:
    """The times of each contender's turns. Each contender has one turn in a round, so that clock drift favours none.

    Rounds start until ``row_budget`` has expired, but at least MIN_ROUNDS; no turn starts once ``total_budget`` has.
    A contender that fails or has no turn gets an exception in place of times.
    """
    times: dict[str, list[Seconds]] = {name: [] for name in turns}
    failed: dict[str, Exception] = {}
    longest = dict.fromkeys(turns, 0.0)
    for number in range(MAX_ROUNDS):
        if number >= MIN_ROUNDS and row_budget.expired():
            break
        for name, turn in turns.items():
            if total_budget.expired() or name in failed or (number >= MIN_ROUNDS and longest[name] > SLOW_SECONDS):
                continue
            start = total_budget.clock()
            try:
                times[name].append(turn())
            except Exception as error:
                failed[name] = error
            longest[name] = max(longest[name], total_budget.clock() - start)
    return {name: failed.get(name) or taken or NotMeasured(TIME_WAS_UP) for name, taken in times.items()}


def summarize(turns: Sequence[Seconds], unit: str) -> dict[str, float]:
    """Least and median time of the turns: {"host_us_least": ..., "host_us_median": ..., "rounds": 9}."""
    entries: dict[str, float] = {}
    for name in turns[0]:
        taken = [turn[name] * PER_SECOND[unit] for turn in turns]
        entries[f"{name}_{unit}_least"] = min(taken)
        entries[f"{name}_{unit}_median"] = statistics.median(taken)
    return {**entries, "rounds": len(turns)}


def calls_to_fill(seconds_per_call: float, seconds: float, max_calls: int) -> int:
    """How many calls fill ``seconds``: from 1 to ``max_calls``."""
    return max(1, min(max_calls, math.ceil(seconds / max(seconds_per_call, 1e-9))))


def sets_to_rotate(bytes_per_set: int, cache_bytes: int) -> int:
    """How many input sets fill four caches, so that none is still in the cache when its turn comes again."""
    return max(1, math.ceil(4 * cache_bytes / bytes_per_set))


def rotation(sets: Iterable[Sequence[object]], run: Callable[..., object]) -> Callable[[int], None]:
    """A function that calls ``run`` a given number of times, on the sets in a cycle; it resumes where it ended."""
    cycle = itertools.cycle(list(sets))

    def run_calls(count: int) -> None:
        for arguments in itertools.islice(cycle, count):
            run(*arguments)

    return run_calls
