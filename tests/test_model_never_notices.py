"""The model never notices: whatever is explained, in whatever mode, and however it fails, all is as before."""

import asyncio
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest
import torch
from support.networks import ConvNet
from support.unchanged import unchanged
from torch import nn

import gradcam_fast
from gradcam_fast._layer_search import memory


class Tokens(nn.Module):
    """A small vision transformer with a class token."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, images):
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), patches], 1)
        return self.head(self.norm(self.blocks(tokens))[:, 0])


class Counting(ConvNet):
    """Writes to its buffers in every forward, also in eval mode, in place and by new tensors."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, images):
        if self.training:
            self.seen += len(images)
            self.mean = 0.9 * self.mean + 0.1 * images.mean((0, 2, 3)).detach()
        return super().forward(images)


MODELS = {"cnn": ConvNet, "tokens": Tokens, "counting": Counting}
MODES = {
    "plain": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}
NAMED = {
    "cnn": {"layer": "features.3"},
    "tokens": {"layer": "blocks.1.norm1", "tokens": (4, 4)},
    "counting": {"layer": "features.3"},
}


@contextmanager
def process_unchanged():
    """Raise AssertionError unless the settings of the process are as before, and its generators."""

    def settings():
        return (
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark,
            torch.is_autocast_cache_enabled(),
            torch.get_float32_matmul_precision(),
            threading.active_count(),
            len(torch.utils._python_dispatch._get_current_dispatch_mode_stack()),
            len(torch.overrides._get_current_function_mode_stack()),
        )

    before, state = settings(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        assert settings() == before
        assert torch.equal(torch.get_rng_state(), state)
        after = torch.cuda.get_rng_state_all() if devices else []
        assert all(map(torch.equal, devices, after))


def trained(name, training):
    """A model with gradients, a frozen parameter and hooks of its own."""
    model = MODELS[name]().train(training)
    model(torch.rand(4, 3, 16, 16)).sum().backward()
    next(model.parameters()).requires_grad_(False)
    model.register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("found", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_an_explanation_changes_nothing(name, found, mode, training, images):
    model = trained(name, training)
    with MODES[mode](), unchanged(model), process_unchanged():
        explanation = gradcam_fast.explain(model, images, **({} if found else NAMED[name]))
    assert explanation.heatmap.shape == (3, 16, 16)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, SystemExit, RuntimeError, GeneratorExit])
@pytest.mark.parametrize("found", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_an_error_at_any_module_changes_nothing(name, found, error, training, images):
    model = trained(name, training)
    for module in list(model.modules()):
        for place in ("register_forward_pre_hook", "register_forward_hook"):

            def fail(*_):
                raise error("at a module")

            handle = getattr(module, place)(fail)
            memory._MEMORY.clear()
            with unchanged(model), process_unchanged(), suppress(error):
                gradcam_fast.explain(model, images, **({} if found else NAMED[name]))
            handle.remove()
    with unchanged(model), process_unchanged():
        gradcam_fast.explain(model, images, **({} if found else NAMED[name]))


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ValueError])
@pytest.mark.parametrize("argument", ["target", "output", "when", "tokens"])
def test_an_error_of_a_function_of_the_callers_changes_nothing(argument, error, images):
    model = trained("cnn", training=True)

    def fail(*_):
        raise error("in a function")

    # Whatever tokens= raises makes the layer unreadable, which is a ValueError.
    with unchanged(model), process_unchanged(), pytest.raises((error, ValueError)):
        if argument == "target":
            gradcam_fast.explain(model, images, target=fail, layer="features.3")
        else:
            gradcam_fast.Explainer(model, layer="features.3", **{argument: fail})(images)


def mix(seconds, threads):
    """Threads that predict and explain with one model, and train another, for some time; what went wrong."""
    torch.manual_seed(0)
    model, other = ConvNet(), ConvNet().train()
    images = torch.randn(2, 3, 16, 16)
    expected, logits = gradcam_fast.explain(model, images).heatmap, model(images).detach()
    named = gradcam_fast.explain(model, images, layer="features.3", topk=2).heatmap
    end, wrong, done = time.monotonic() + seconds, [], [0, 0, 0]

    def work(number):
        while time.monotonic() < end and not wrong:
            try:
                if number % 4 == 0:
                    with torch.no_grad():
                        output = model(images)
                    if output.requires_grad or not torch.equal(output, logits):
                        wrong.append("prediction")
                    done[0] += 1
                elif number == 1:
                    other.zero_grad()
                    other(images).sum().backward()
                    if other.features[0].weight.grad is None:
                        wrong.append("training")
                    done[1] += 1
                else:
                    if number % 2:
                        same = torch.equal(gradcam_fast.explain(model, images).heatmap, expected)
                    else:
                        maps = gradcam_fast.explain(model, images, layer="features.3", topk=2).heatmap
                        same = torch.equal(maps, named)
                    if not same:
                        wrong.append("explanation")
                    done[2] += 1
            except Exception as error:
                wrong.append(repr(error))

    with unchanged(model), ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    assert min(done) > 0
    return wrong


def test_threads_that_predict_train_and_explain_do_not_disturb_each_other():
    assert mix(2, 8) == []


@pytest.mark.slow
def test_sixteen_threads_do_not_disturb_each_other_for_a_minute():
    assert mix(60, 16) == []


def test_tasks_of_asyncio_may_explain(images):
    model = ConvNet()
    expected = gradcam_fast.explain(model, images).heatmap

    async def explain(in_thread):
        await asyncio.sleep(0)
        if in_thread:
            return await asyncio.to_thread(gradcam_fast.explain, model, images)
        return gradcam_fast.explain(model, images)

    async def together():
        return await asyncio.gather(*(explain(number % 2 == 0) for number in range(20)))

    with unchanged(model):
        explanations = asyncio.run(together())
    assert all(torch.equal(explanation.heatmap, expected) for explanation in explanations)


def explained_elsewhere(model, images, queue):
    torch.set_num_threads(1)
    queue.put(gradcam_fast.explain(model, images).heatmap.tolist())


def explain_in_process(method):
    """Explain here, and in a process made by this method, and compare."""
    torch.manual_seed(0)
    model, images = ConvNet(), torch.rand(3, 3, 16, 16)
    model.at_start = model.at_head = print_nothing
    expected = gradcam_fast.explain(model, images).heatmap.tolist()
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=explained_elsewhere, args=(model, images, queue))
    process.start()
    assert queue.get(timeout=120) == expected
    process.join(60)
    assert process.exitcode == 0


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_that_are_forked_or_spawned_explain_the_same(method):
    if method not in multiprocessing.get_all_start_methods() or (method == "fork" and os.name != "posix"):
        pytest.skip(f"this system cannot {method}")
    # From a fresh process: those of the tests have threads of other libraries, with which no fork is safe.
    script = f"import {__name__}\nif __name__ == '__main__':\n    {__name__}.explain_in_process({method!r})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=240)


def print_nothing(_):
    """At module level, so that it can be pickled."""
