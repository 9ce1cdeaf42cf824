"""An interruption at any step of an explanation leaves the model, its hooks and PyTorch's modes as they were."""

import gc
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from support.interruptions import interrupt, steps_of
from support.networks import ConvNet
from support.unchanged import unchanged

import gradcam_fast
from gradcam_fast._capture import buffers, hooks
from gradcam_fast._model import eager, own_hooks, undo

# Where hooks, buffers and modes are changed and changed back.
PLACES = (own_hooks.__file__, undo.__file__, buffers.__file__, hooks.__file__, eager.__file__)
LOCKS = (buffers._SWAPPING, eager._lock)
TORCH_PLACES = ("torch/nn/modules/module.py", "torch/autograd/grad_mode.py", "contextlib.py")


def watched(file):
    return file in PLACES


def watched_with_replays(file):
    return file in PLACES or "/_head_replay/" in file or file.endswith("contextlib.py")


def watched_with_torch(file):
    return "/gradcam_fast/" in file or file.endswith(TORCH_PLACES)


def assert_nothing_is_left(model):
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(vars(module._forward_hooks) for module in model.modules())
    for lock in LOCKS:
        # The interrupted thread has ended, but the next one may get its number, and with it a lock that it held.
        assert not lock.is_held() and lock._lock.acquire(timeout=5)
        lock.release()
    if len(undo._running):
        gc.collect()  # the traceback of the interruption refers to its frames in a circle
    assert not eager._users and not len(undo._running)


def interrupted_at_every(step, model, work, watched, error=KeyboardInterrupt):
    expected = work().heatmap
    steps = steps_of(work, watched)
    interrupted = 0
    for at in range(0, steps, step):
        with unchanged(model):
            interrupted += interrupt(lambda: (work(), assert_modes()), at, watched, error)
        assert_nothing_is_left(model)
    assert interrupted > 0.9 * len(range(0, steps, step))
    assert torch.equal(work().heatmap, expected)
    return steps


def assert_modes():
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_at_steps_of_a_hooks_life(images):
    model = ConvNet()
    work = lambda: gradcam_fast.explain(model, images[:2], layer="features.3")  # noqa: E731
    assert interrupted_at_every(7, model, work, own_hooks.__file__.__eq__) > 100


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, SystemExit])
def test_at_steps_of_the_whole_explanation_and_of_pytorch(error, images):
    model = ConvNet()
    work = lambda: gradcam_fast.explain(model, images[:2], layer="features.3")  # noqa: E731
    interrupted_at_every(211, model, work, watched_with_torch, error)


@pytest.mark.parametrize("choices", [{"method": "scorecam"}, {"method": "ablation"}, {"smooth": ("augment", "eigen")}])
def test_at_steps_of_methods_that_run_the_model_again(choices, images):
    model = ConvNet()
    explainer = gradcam_fast.Explainer(model, layer="features.3", **choices)
    interrupted_at_every(397, model, lambda: explainer(images[:1]), watched_with_replays)


def test_at_steps_of_the_search_for_a_layer(images):
    model = ConvNet()

    def work():
        gradcam_fast._layer_search.memory._MEMORY.clear()
        return gradcam_fast.explain(model, images[:2])

    interrupted_at_every(301, model, work, watched)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_at_every_step_of_what_changes_the_model_and_at_many_of_pytorch(mode, images):
    model = getattr(ConvNet(), mode)()
    work = lambda: gradcam_fast.explain(model, images[:2], layer="features.3")  # noqa: E731
    interrupted_at_every(1, model, work, watched)
    interrupted_at_every(17, model, work, watched_with_torch)


@pytest.mark.slow
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_at_every_step_no_lock_stays_held_once_pytorchs_compiler_is_loaded(context, images):
    importlib.import_module("torch._dynamo")  # explanations turn its switch
    model = ConvNet()

    def work():
        with context():
            return gradcam_fast.explain(model, images[:2], layer="features.3")

    assert interrupted_at_every(1, model, work, watched) > 1000


def modes_of_this_thread():
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        list(torch.overrides._get_current_function_mode_stack()),
        list(torch.utils._python_dispatch._get_current_dispatch_mode_stack()),
    )


def watched_modes(file):
    return watched(file) or file.endswith(("random_numbers.py", "pictures.py", "trace.py", "reference.py"))


@pytest.mark.parametrize("kind", ["named", "found", "clip", "float64"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
def test_the_modes_around_a_call_come_back(context, kind, images):
    model, batch = ConvNet(), images[:2]
    if kind == "clip":
        model, batch = Frames(), images[None]
    elif kind == "float64":
        model, batch = model.double(), batch.double()
    modes = []

    def work():
        with context():
            before = modes_of_this_thread()
            try:
                gradcam_fast._layer_search.memory._MEMORY.clear()
                gradcam_fast.explain(model, batch, layer=None if kind == "found" else "features.3")
            finally:
                modes.append(modes_of_this_thread() == before)

    for at in range(0, steps_of(work, watched_modes), 23):
        interrupt(work, at, watched_modes)
    assert all(modes) and len(modes) > 50


class Frames(ConvNet):
    """Takes clips (B,T,3,H,W), and averages the logits of their frames."""

    def forward(self, clips):
        return super().forward(clips.flatten(0, 1)).unflatten(0, clips.shape[:2]).mean(1)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="timers of POSIX")
def test_real_signals_at_random_places(images):
    model = ConvNet()
    explainer = gradcam_fast.Explainer(model, layer="features.3")
    explainer(images)
    before = time.perf_counter()
    explainer(images)
    duration = time.perf_counter() - before
    # A job in the background of a shell ignores SIGINT.
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with unchanged(model):
            for number in range(200):
                try:
                    try:
                        signal.setitimer(signal.ITIMER_REAL, duration * (number % 50 + 1) / 50)
                        explainer(images)
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:  # also one that arrives before the timer is stopped
                    pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert_nothing_is_left(model)


def fork_meanwhile(mode):
    """Fork while another thread explains, and explain in the child; AssertionError if that fails."""
    model, images = getattr(ConvNet(), mode)(), torch.randn(3, 3, 16, 16)
    reached, release = threading.Event(), threading.Event()
    explaining = []

    def halt(_):
        if threading.get_ident() in explaining:
            reached.set()
            release.wait(30)

    def explain():
        explaining.append(threading.get_ident())
        return gradcam_fast.explain(model, images, layer="features.3")

    model.at_head = halt
    buffer = model.features[1].running_mean
    thread = threading.Thread(target=explain)
    thread.start()
    reached.wait(30)
    child = os.fork()
    if child == 0:
        status = 4
        try:
            explaining.clear()
            hooks = any(module._forward_hooks for module in model.modules())
            gradcam_fast.explain(model, images, layer="features.3")
            status = 3 if hooks or any(module._forward_hooks for module in model.modules()) else 0
        finally:
            os._exit(status)
    release.set()
    thread.join(30)
    deadline = time.monotonic() + 60
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.05)
    if done == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert done == (child, 0)
    assert buffer is model.features[1].running_mean


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork of POSIX")
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_child_that_is_forked_meanwhile_has_no_hook_and_can_explain(mode):
    # From a fresh process: PyTorch lets no child differentiate whose parent has used threads of autograd.
    script = f"import torch, {__name__}; torch.set_num_threads(1); {__name__}.fork_meanwhile({mode!r})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], env=environment, check=True, timeout=240)
