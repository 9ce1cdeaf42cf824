"""Hooks that the model has of its own run as always, and what they change is explained.

A plain hook at the layer, and hooks that only watch, are in test_capture.py.
"""

import pytest
import torch
from support.naive import full_graph, of_class
from support.networks import ConvNet, stateless
from support.unchanged import unchanged
from torch import nn
from torch.nn.modules import module as torch_module

from gradcam_fast import cam, explain


def out_of_place():
    """A ConvNet with out-of-place ReLUs: PyTorch allows no in-place one behind a module with a backward hook."""
    model = ConvNet()
    for relu in (model.features[2], model.features[4]):
        relu.inplace = False
    return model


def assert_as_in_the_full_graph(model, images, layer="features.3"):
    """The explanation is that of an ordinary forward and backward with hooks; HiResCAM reads every gradient."""
    activations, gradients, logits = full_graph(model, layer, images, of_class(1))
    choices = {"size": activations.shape[-2:], "method": "hirescam", "normalize": "none", "relu": False}
    with unchanged(model):
        explanation = explain(model, images, target=1, layer=layer, **choices)
    assert torch.equal(explanation.logits, logits)
    assert torch.equal(explanation.heatmap, cam(activations, gradients, **choices)[0]) and explanation.valid.all()
    return explanation


def changed(maps):
    return maps * 2 + 1


def twice(maps):
    """Change the maps without changing their version counter."""
    maps.data = maps.data * 2


def doubled(gradients):
    return tuple(None if gradient is None else gradient * 2 for gradient in gradients)


# (module, how to register the hook). Each hook changes the logits.
FORWARD_HOOKS = {
    "before the trunk": ("", lambda m: m.register_forward_pre_hook(lambda _, args: changed(args[0]))),
    "before the layer": ("features.3", lambda m: m.register_forward_pre_hook(lambda _, args: changed(args[0]))),
    "before the layer, keywords": (
        "features.3",
        lambda m: m.register_forward_pre_hook(
            lambda _, args, kwargs: ((changed(args[0]),), kwargs),
            with_kwargs=True,
        ),
    ),
    "before the head": ("head", lambda m: m.register_forward_pre_hook(lambda _, args: changed(args[0]))),
    "at the layer, always": (
        "features.3",
        lambda m: m.register_forward_hook(lambda _, __, output: changed(output), always_call=True),
    ),
    "at the layer, keywords": (
        "features.3",
        lambda m: m.register_forward_hook(lambda _, __, ___, output: changed(output), with_kwargs=True),
    ),
    "at the layer, unseen": ("features.3", lambda m: m.register_forward_hook(lambda _, __, output: twice(output))),
    "at the layer, in place": (
        "features.3",
        lambda m: m.register_forward_hook(lambda _, __, output: output.mul_(2).add_(1)),
    ),
    "behind the layer": ("features.4", lambda m: m.register_forward_hook(lambda _, __, output: changed(output))),
    "at the logits": ("", lambda m: m.register_forward_hook(lambda _, __, output: changed(output))),
}

# Each hook changes the gradient at the layer, and nothing in the forward.
BACKWARD_HOOKS = {
    "at the layer": ("features.3", lambda m: m.register_full_backward_pre_hook(lambda _, grads: doubled(grads))),
    "behind the layer": ("features.4", lambda m: m.register_full_backward_hook(lambda _, grads, __: doubled(grads))),
    "behind the layer, before": (
        "features.4",
        lambda m: m.register_full_backward_pre_hook(lambda _, grads: doubled(grads)),
    ),
    "in the head": ("head.4", lambda m: m.register_full_backward_hook(lambda _, grads, __: doubled(grads))),
    "at the logits": ("", lambda m: m.register_full_backward_pre_hook(lambda _, grads: doubled(grads))),
}


@pytest.mark.parametrize("where", FORWARD_HOOKS)
def test_what_a_forward_hook_changes_is_explained(where, images):
    model, (name, put) = out_of_place(), FORWARD_HOOKS[where]
    logits = model(images)
    put(model.get_submodule(name))
    explanation = assert_as_in_the_full_graph(model, images)
    assert not torch.equal(explanation.logits, logits)


@pytest.mark.parametrize("where", BACKWARD_HOOKS)
def test_a_gradient_changed_by_a_backward_hook_is_explained(where, images):
    model, (name, put) = out_of_place(), BACKWARD_HOOKS[where]
    before = assert_as_in_the_full_graph(model, images)
    put(model.get_submodule(name))
    explanation = assert_as_in_the_full_graph(model, images)
    assert torch.equal(explanation.heatmap, before.heatmap * 2)


@pytest.mark.parametrize("where", BACKWARD_HOOKS)
def test_a_backward_hook_changes_the_gradients_of_all_targets(where, images):
    model, (name, put) = out_of_place(), BACKWARD_HOOKS[where]
    put(model.get_submodule(name))
    choices = {"layer": "features.3", "normalize": "none", "relu": False}
    together = explain(model, images, target=[[0, 3]] * 3, **choices)
    single = [explain(model, images, target=k, **choices).heatmap for k in (0, 3)]
    assert torch.equal(together.heatmap, torch.stack(single, 1)) and together.valid.all()


def test_a_backward_hook_before_the_layer_does_not_run_in_an_explanation(images):
    model, runs = out_of_place(), []
    expected = explain(model, images, layer="features.3").heatmap
    model.features[0].register_full_backward_hook(lambda *_: runs.append(1))
    assert torch.equal(explain(model, images, layer="features.3").heatmap, expected) and not runs
    model(images.requires_grad_()).sum().backward()
    assert runs == [1]


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # the layer's input has no graph
def test_a_backward_hook_at_the_layer_receives_the_explained_gradient(images):
    model, received = out_of_place(), []
    _, gradients, _ = full_graph(model, "features.3", images, of_class(1))
    model.features[3].register_full_backward_hook(lambda _, __, output: received.extend(output))
    assert_as_in_the_full_graph(model, images)
    assert torch.equal(received[-1], gradients)


@pytest.mark.parametrize("always", [True, False])
def test_global_module_hooks_act_in_an_explanation(always, images):
    model = out_of_place()
    logits = model(images)
    handle = torch_module.register_module_forward_hook(
        lambda module, _, output: changed(output) if isinstance(module, nn.Conv2d) else None, always_call=always
    )
    try:
        explanation = assert_as_in_the_full_graph(model, images)
    finally:
        handle.remove()
    assert not torch.equal(explanation.logits, logits)
    assert torch.equal(explain(model, images, layer="features.3").logits, logits)


@pytest.mark.parametrize(("layer", "forwards"), [("features.3", 1), (None, 2)])
def test_an_always_called_hook_is_called_once_a_forward_when_the_model_raises(layer, forwards, images):
    """A search tries one image, and then the whole batch, for the model may need it."""
    model, runs = ConvNet(), []
    model.head[4].register_forward_pre_hook(lambda *_: 1 / 0)
    model.head.register_forward_hook(lambda *_: runs.append("head"), always_call=True)
    model.features[3].register_forward_hook(lambda *_: runs.append("layer"), always_call=True)
    with unchanged(model), pytest.raises(ZeroDivisionError):
        explain(model, images, layer=layer)
    assert runs == ["layer", "head"] * forwards


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("place", ["features.0", "features.3", "features.4", "head", ""])
def test_a_hook_of_the_model_that_raises_leaves_no_trace(place, kind, images):
    model = ConvNet()
    getattr(model.get_submodule(place), kind)(lambda *_: 1 / 0)
    with unchanged(model), pytest.raises(ZeroDivisionError):
        explain(model, images, layer="features.3")


@pytest.mark.parametrize("layer", ["features.3", None])
def test_hooks_on_the_wrapper_of_a_compiled_model_act_in_an_explanation(layer, images):
    torch._dynamo.reset()
    model = stateless()
    expected = explain(model, changed(images), target=1, layer=layer)
    compiled = torch.compile(model, backend="eager")
    compiled.register_forward_pre_hook(lambda _, args: changed(args[0]))
    for _ in range(2):  # before its first run and after it
        with unchanged(compiled):
            explanation = explain(compiled, images, target=1, layer=layer)
        assert torch.equal(explanation.heatmap, expected.heatmap) and explanation.layer == expected.layer
        with torch.no_grad():
            assert torch.equal(compiled(images), explanation.logits)


def test_a_hook_registered_during_the_forward_stays(images):
    model, runs = ConvNet(), []
    model.at_head = lambda _: model.features[0].register_forward_hook(lambda *_: runs.append(1))
    explain(model, images, layer="features.3")
    assert len(model.features[0]._forward_hooks) == 1 and not runs
    explain(model, images, layer="features.3")
    assert len(model.features[0]._forward_hooks) == 2 and runs == [1]


class Keeping(nn.Module):
    """Its own hooks keep what modules return, and a decoder reads that, as in MiDaS and transformers' hidden states."""

    def __init__(self, changes):
        super().__init__()
        self.low, self.high = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.heads, self.kept = nn.ModuleList(nn.Linear(8, 5) for _ in range(2)), {}
        self.eval()
        for name in ("low", "high"):
            module = getattr(self, name)
            module.register_forward_hook(lambda _, __, output, name=name: self.kept.__setitem__(name, output))
            if changes:
                module.register_forward_hook(lambda _, __, output: changed(output))

    def forward(self, images):
        last = self.high(self.low(images).relu())
        pooled = [self.kept.pop(name).mean((2, 3)) for name in ("low", "high")]
        return sum(head(maps) for head, maps in zip(self.heads, pooled, strict=True)) + last.mean((2, 3))[:, :5].tanh()


@pytest.mark.parametrize("changes", [False, True])
@pytest.mark.parametrize("layer", ["low", "high"])
def test_maps_that_a_hook_of_the_model_keeps_count_in_the_gradient(layer, changes, images):
    torch.manual_seed(6)
    model = Keeping(changes)
    kept = []
    # The changed output is explained; the unchanged one that an earlier hook kept is not part of it.
    handle = model.get_submodule(layer).register_forward_hook(
        lambda _, __, output: kept.append(output), prepend=not changes
    )
    logits = model(images)
    handle.remove()
    (gradients,) = torch.autograd.grad(logits[:, 1].sum(), kept[0])
    for name in (layer, [layer]):
        with unchanged(model):
            explanation = explain(model, images, target=1, layer=name, normalize="none", relu=False)
        assert torch.equal(explanation.logits, logits)
        expected = cam(kept[0].detach(), gradients, (16, 16), normalize="none", relu=False)[0]
        torch.testing.assert_close(explanation.heatmap, expected)
    # The decoder reads both, and `high` is made of `low`.
    assert explain(model, images, target=1, relu=False).layer == "low"
