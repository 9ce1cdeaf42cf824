"""The three stages: order, batches, skipped items, bounds, an end without threads left behind, whatever goes wrong."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import torch

from gradcam_fast.pipeline.stages import run_stages


class Bad(Exception):
    pass


def flowing(items, load=lambda n: n, look=None, finish=lambda n, seen: (n, seen), batch=3, workers=2):
    look = look or (lambda numbers: lambda: [10 * n for n in numbers])
    return run_stages(items, load, look, finish, batch=batch, workers=workers, skip=Bad)


@pytest.fixture(autouse=True)
def no_thread_stays():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def refuse(unwanted, error):
    def load(n):
        if n in unwanted:
            raise error
        return n

    return load


@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_every_item_comes_out_in_order_with_what_was_seen_of_it(count):
    slow_first = lambda n: time.sleep(0.01 * (n % 3 == 0)) or n  # noqa: E731
    assert list(flowing(range(count), load=slow_first)) == [(n, (n, 10 * n)) for n in range(count)]


def test_the_network_sees_full_batches_whatever_was_skipped():
    batches = []

    def look(numbers):
        batches.append(numbers)
        return lambda: numbers

    bad = Bad("no")
    outcomes = list(flowing(range(9), load=refuse({0, 4, 5}, bad), look=look))
    assert batches == [[1, 2, 3], [6, 7, 8]]
    assert [outcome for _, outcome in outcomes] == [bad, (1, 1), (2, 2), (3, 3), bad, bad, (6, 6), (7, 7), (8, 8)]
    assert [item for item, _ in outcomes] == list(range(9))


def test_nothing_but_skipped_items_never_reaches_the_network_and_comes_out_as_it_goes():
    seen = []
    items = (seen.append(n) or n for n in range(1000))
    with closing(flowing(items, load=refuse(range(1000), Bad()), look=pytest.fail)) as stages:
        assert isinstance(next(stages)[1], Bad)
        assert len(seen) < 50


def test_the_next_batch_is_handed_over_before_the_last_one_is_waited_for():
    events = []

    def look(numbers):
        events.append(("look", numbers[0]))
        return lambda: events.append(("wait", numbers[0])) or numbers

    list(flowing(range(6), look=look, batch=2))
    assert events == [("look", 0), ("look", 2), ("wait", 0), ("look", 4), ("wait", 2), ("wait", 4)]


def test_however_many_items_there_are_few_are_on_their_way():
    lock, inside, most = threading.Lock(), 0, 0

    def load(n):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        return n

    for _ in flowing(range(500), load=load, finish=lambda n, _: time.sleep(0.0005), batch=4, workers=2):
        with lock:
            inside -= 1
    assert 4 <= most <= 5 * 4 + 2 * 2


def test_all_stages_work_at_the_same_time():
    def rest(*_):
        time.sleep(0.01)

    def look(numbers):
        rest()
        return lambda: numbers

    start = time.perf_counter()
    list(flowing(range(30), load=rest, look=look, finish=rest, batch=1, workers=1))
    assert time.perf_counter() - start < 0.75 * 30 * 0.03


def test_the_network_goes_on_while_the_last_batch_is_finished():
    looked = []

    def look(numbers):
        looked.append(numbers[0])
        return lambda: numbers

    def finish(n, _):
        if n == 0:  # the first to be finished waits until the network has seen more
            for _ in range(500):
                if 6 in looked:
                    return True
                time.sleep(0.01)
        return 6 in looked

    assert next(iter(flowing(range(9), look=look, finish=finish)))[1] is True


@pytest.mark.parametrize("stage", ["items", "load", "look", "wait", "finish"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_fault_in_any_stage_ends_the_flow_and_begins_nothing_more(stage, error):
    begun = []

    def at(name, n=None):
        begun.append(name)
        if name == stage and len(begun) > 20:
            raise error
        return n

    def items():
        for n in range(10_000):
            yield at("items", n)

    stages = {
        "load": lambda n: at("load", n),
        "look": lambda numbers: at("look") or (lambda: at("wait") or numbers),
        "finish": lambda n, _: at("finish", n),
    }
    with pytest.raises(type(error)) as caught:
        list(flowing(items(), **stages))
    assert caught.value is error
    assert len(begun) < 200


def test_threads_of_the_flow_keep_to_one_core_and_no_others():
    looking = []

    def look(numbers):
        looking.append(torch.get_num_threads())
        return lambda: numbers

    def in_a_new_thread():
        """Whose number of threads PyTorch has not settled yet."""
        inside = [outcome for _, outcome in flowing(range(9), look=look, finish=lambda n, _: torch.get_num_threads())]
        return inside, torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(in_a_new_thread).result() == ([1] * 9, 3)
        assert looking == [3, 3, 3]
        with ThreadPoolExecutor(1) as pool:
            assert (torch.get_num_threads(), pool.submit(torch.get_num_threads).result()) == (3, 3)
    finally:
        torch.set_num_threads(before)


def test_who_stops_reading_stops_the_flow():
    done = []
    with closing(flowing(range(10_000), finish=lambda n, _: done.append(n))) as stages:
        next(stages)
    assert 0 < len(done) < 50
