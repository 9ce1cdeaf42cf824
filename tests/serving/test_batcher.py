"""What comes while the model is busy goes through it together; a fault, or a caller that leaves, is its own only."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from gradcam_fast.serving.batcher import Batcher


class Model:
    """Returns ten times each number, refuses 13, and remembers its batches; it waits while it is held."""

    def __init__(self):
        self.batches, self.open = [], threading.Event()
        self.open.set()

    def __call__(self, key, numbers):
        self.open.wait(10)
        self.batches.append((key, list(numbers)))
        if 13 in numbers:
            raise ValueError(f"13 is unlucky, in {key}")
        return [10 * number for number in numbers]


@pytest.fixture
def model():
    return Model()


def run(model, scenario, max_batch=4):
    async def main():
        with ThreadPoolExecutor(1) as executor:
            return await scenario(Batcher(model, max_batch, executor))

    return asyncio.run(main())


async def while_busy(model, batcher, *keys_and_numbers):
    """Submits items while the model runs a first one, and returns their tasks."""
    model.open.clear()
    first = asyncio.create_task(batcher.submit("first", 0))
    await asyncio.sleep(0.02)
    tasks = [asyncio.create_task(batcher.submit(*item)) for item in keys_and_numbers]
    await asyncio.sleep(0.02)
    return first, tasks


def test_an_item_that_comes_alone_is_run_at_once(model):
    assert run(model, lambda batcher: batcher.submit("a", 7)) == 70
    assert model.batches == [("a", [7])]


def test_items_of_one_key_that_wait_go_together_up_to_the_limit(model):
    async def scenario(batcher):
        first, tasks = await while_busy(model, batcher, *(("a", number) for number in range(1, 7)))
        assert batcher.depth == 6
        model.open.set()
        return await asyncio.gather(first, *tasks)

    assert run(model, scenario) == [0, 10, 20, 30, 40, 50, 60]
    assert model.batches == [("first", [0]), ("a", [1, 2, 3, 4]), ("a", [5, 6])]


def test_keys_are_not_mixed_and_take_turns(model):
    async def scenario(batcher):
        _, tasks = await while_busy(model, batcher, ("a", 1), ("a", 2), ("a", 3), ("b", 4), ("a", 5))
        model.open.set()
        return await asyncio.gather(*tasks)

    assert run(model, scenario, max_batch=2) == [10, 20, 30, 40, 50]
    assert model.batches[1:] == [("a", [1, 2]), ("b", [4]), ("a", [3, 5])]


def test_a_fault_is_that_of_one_item_and_spoils_no_other(model):
    async def scenario(batcher):
        _, tasks = await while_busy(model, batcher, ("a", 1), ("a", 13), ("a", 3))
        model.open.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    one, refused, three = run(model, scenario)
    assert (one, three) == (10, 30)
    assert isinstance(refused, ValueError) and str(refused) == "13 is unlucky, in a"
    assert model.batches[2:] == [("a", [1]), ("a", [13]), ("a", [3])]


def test_an_item_whose_caller_has_left_is_not_run(model):
    async def scenario(batcher):
        _, tasks = await while_busy(model, batcher, ("a", 1), ("a", 2), ("a", 3), ("b", 4))
        tasks[1].cancel()
        tasks[3].cancel()
        await asyncio.sleep(0)
        model.open.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    one, two, three, four = run(model, scenario)
    assert (one, three) == (10, 30)
    assert all(isinstance(left, asyncio.CancelledError) for left in (two, four))
    assert model.batches[1:] == [("a", [1, 3])]


def test_a_caller_that_leaves_a_running_batch_takes_nothing_from_the_others(model):
    async def scenario(batcher):
        model.open.clear()
        tasks = [asyncio.create_task(batcher.submit("a", number)) for number in (1, 2)]
        await asyncio.sleep(0.02)
        tasks[0].cancel()
        model.open.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    left, two = run(model, scenario)
    assert isinstance(left, asyncio.CancelledError) and two == 20


def test_an_item_after_a_pause_is_run_as_well(model):
    async def scenario(batcher):
        first = await batcher.submit("a", 1)
        await asyncio.sleep(0.05)
        return first, await batcher.submit("a", 2), batcher.depth

    assert run(model, scenario) == (10, 20, 0)


def test_thousands_of_items_of_several_keys_are_all_answered(model):
    async def scenario(batcher):
        return await asyncio.gather(*(batcher.submit(number % 3, number) for number in range(20, 3020)))

    assert run(model, scenario) == [10 * number for number in range(20, 3020)]
    assert all(len(numbers) <= 4 and len({n % 3 for n in numbers}) == 1 for _, numbers in model.batches)
    assert len(model.batches) <= 3000 / 4 + 3
