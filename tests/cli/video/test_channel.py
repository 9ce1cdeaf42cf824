"""Items arrive in order, neither thread runs far ahead of the other, and no error or end is lost between them."""

import threading
import time

import pytest

from gradcam_fast.cli.video.channel import Abandoned, Channel, read_ahead, write_behind


def test_what_is_read_ahead_comes_in_order_from_another_thread():
    threads = []

    def items():
        threads.append(threading.current_thread())
        yield from range(100)

    with read_ahead(items()) as taken:
        assert list(taken) == list(range(100))
    assert threads != [threading.current_thread()]


def test_nothing_is_read_far_ahead():
    produced = []

    def items():
        for i in range(50):
            produced.append(i)
            yield i

    with read_ahead(items()) as taken:
        for i in taken:
            time.sleep(0.002)
            assert len(produced) <= i + 3  # one in hand, one waiting, one being put


def test_an_error_of_the_reader_comes_after_what_was_read():
    def items():
        yield 1
        raise OSError("the disk is gone")

    taken = []
    with pytest.raises(OSError, match="the disk is gone"), read_ahead(items()) as channel:
        taken += channel
        pytest.fail("the error was lost")  # pragma: no cover
    with read_ahead(items()) as channel:
        assert next(iter(channel)) == 1


def test_whoever_stops_taking_stops_the_reader():
    closed = threading.Event()

    def endless():
        while True:
            yield 1

    with read_ahead(endless(), close=closed.set) as taken:
        assert next(iter(taken)) == 1
    assert closed.wait(5)


def test_a_reader_that_waits_for_ever_keeps_nobody():
    waiting = threading.Event()

    def silent():
        yield 1
        waiting.wait()

    start = time.monotonic()
    with read_ahead(silent()) as taken:
        assert next(iter(taken)) == 1
    assert time.monotonic() - start < 3
    waiting.set()


def test_only_the_newest_is_taken_and_the_last_is_not_lost():
    channel = Channel(newest=True)
    putting = threading.Thread(target=lambda: [channel.put(i) for i in range(1000)], daemon=True)
    putting.start()
    putting.join(10)
    assert not putting.is_alive()
    taken = iter(channel)
    assert next(taken) == 999
    channel.put(1000)
    channel.put(1001)
    channel.finish()
    assert list(taken) == [1001]


def test_what_is_put_behind_is_all_consumed_in_order_in_another_thread():
    consumed = []
    with write_behind(lambda item: consumed.append((item, threading.current_thread()))) as put:
        for i in range(100):
            put(i)
    assert [item for item, _ in consumed] == list(range(100))
    assert {thread for _, thread in consumed}.isdisjoint({threading.current_thread()})


def test_nothing_is_put_far_ahead_of_who_consumes():
    gate, consumed = threading.Semaphore(0), []
    with write_behind(lambda item: gate.acquire() and consumed.append(item)) as put:
        put(0)
        put(1)
        late = threading.Thread(target=lambda: (put(2), put(3)))
        late.start()
        late.join(0.1)
        assert late.is_alive() and consumed == []
        for _ in range(4):
            gate.release()
        late.join(5)
    assert consumed == [0, 1, 2, 3]


@pytest.mark.parametrize("count", [1, 2, 50])
def test_an_error_of_who_consumes_reaches_who_puts(count):
    def consume(item):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"), write_behind(consume) as put:
        for i in range(count):
            put(i)


def test_an_error_of_who_puts_ends_the_consuming():
    gate, consumed = threading.Event(), []
    with pytest.raises(ZeroDivisionError), write_behind(lambda item: gate.wait(5) and consumed.append(item)) as put:
        put(0)
        time.sleep(0.05)
        put(1)
        threading.Timer(0.1, gate.set).start()
        raise ZeroDivisionError
    assert consumed == [0]


def test_an_abandoned_channel_takes_nothing_more():
    channel = Channel()
    channel.abandon()
    with pytest.raises(Abandoned):
        channel.put(1)
