"""Copies of a model that are made while another thread explains it have none of the explanation's hooks."""

import copy
import io
import pickle
import threading

import pytest
import torch
from support.networks import ConvNet

import gradcam_fast
from gradcam_fast._model.own_hooks import OwnHooks


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_python_pickle(model):
    file = io.BytesIO()
    pickle._Pickler(file).dump(model)
    return pickle.loads(file.getvalue())


def through_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [copy.deepcopy, through_pickle, through_python_pickle, through_torch_save]


def own_hook_of_the_model(module, args, output):
    """At module level, so that it can be pickled."""


@pytest.fixture
def model():
    model = ConvNet()
    model.features[3].register_forward_hook(own_hook_of_the_model)
    return model


@pytest.mark.parametrize("make_copy", COPIES)
@pytest.mark.parametrize("first", [True, False])
def test_a_copy_has_the_models_hooks_and_none_of_ours(model, make_copy, first):
    with OwnHooks() as hooks:
        for module in model.modules():
            hooks.add(module, lambda *_: pytest.fail("ran in a copy"), first=first)
            hooks.add(module, lambda *_: pytest.fail("ran in a copy"), before=True)
        copied = make_copy(model)
    for name, module in copied.named_modules():
        expected = [own_hook_of_the_model] if name == "features.3" else []
        assert list(module._forward_hooks.values()) == expected and not module._forward_pre_hooks
        assert not vars(module._forward_hooks)
    with torch.no_grad():
        assert not copied(torch.rand(1, 3, 16, 16)).requires_grad


def test_a_shared_dictionary_of_hooks_is_copied_once(model):
    with OwnHooks() as hooks:
        hooks.add(model.features[3], lambda *_: None)
        first, second = copy.deepcopy([model, model])
    assert first is second and first.features[3]._forward_hooks is second.features[3]._forward_hooks


def test_a_hook_that_is_copied_by_itself_does_nothing(model):
    with OwnHooks() as hooks:
        hooks.add(model, lambda *_: pytest.fail("ran"))
        (hook,) = model._forward_hooks.values()
        for make_copy in (copy.deepcopy, copy.copy, through_pickle):
            assert make_copy(hook)(None, None, None) is None
    assert hook(None, None, None) is None  # after its call


def test_what_is_pickled_needs_nothing_of_this_package(model):
    with OwnHooks() as hooks:
        hooks.add(model, lambda *_: None)
        assert b"gradcam_fast" not in pickle.dumps(model)
        assert b"gradcam_fast" not in pickle.dumps(list(model._forward_hooks.values()))


@pytest.mark.parametrize("make_copy", COPIES)
def test_copies_made_while_another_thread_explains(make_copy, images):
    model = ConvNet()
    stop = threading.Event()

    def explain():
        explainer = gradcam_fast.Explainer(model, layer="features.3")
        while not stop.is_set():
            explainer(images)

    thread = threading.Thread(target=explain)
    thread.start()
    try:
        copies = [make_copy(model) for _ in range(40)]
    finally:
        stop.set()
        thread.join()
    assert not any(module._forward_hooks for copied in copies for module in copied.modules())
    with torch.no_grad():
        assert not any(copied(images).requires_grad for copied in copies)
