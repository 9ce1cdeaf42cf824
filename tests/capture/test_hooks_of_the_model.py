"""Models with hooks of their own: what a hook changes is changed in the explanation too, and each runs as always.

Knows nothing of a plain hook at the layer or of hooks that only watch; test_capture.py has those.
"""

import pytest
import torch
from support.naive import full_graph, of_class
from support.networks import ConvNet, stateless
from support.unchanged import unchanged
from torch import nn
from torch.nn.modules import module as torch_module

from gradcam_fast import cam, explain


def unfolded():
    """A ConvNet of out-of-place ReLUs: PyTorch allows no in-place operation behind a module with a backward hook."""
    model = ConvNet()
    for relu in (model.features[2], model.features[4]):
        relu.inplace = False
    return model


def assert_as_in_the_full_graph(model, images, layer="features.3"):
    """What the hooks make of an ordinary forward and backward is explained: HiResCAM, of all methods, sees each bit."""
    activations, gradients, logits = full_graph(model, layer, images, of_class(1))
    choices = {"size": activations.shape[-2:], "method": "hirescam", "normalize": "none", "relu": False}
    with unchanged(model):
        found = explain(model, images, target=1, layer=layer, **choices)
    assert torch.equal(found.logits, logits)
    assert torch.equal(found.heatmap, cam(activations, gradients, **choices)[0]) and found.valid.all()
    return found


def changed(maps):
    return maps * 2 + 1


def twice(maps):
    """In a way that no version counter sees."""
    maps.data = maps.data * 2


def doubled(gradients):
    return tuple(None if each is None else each * 2 for each in gradients)


# What is put on which module of the model. Each changes the logits.
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

# Each changes the gradient at the layer, and nothing in the forward.
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
def test_a_forward_hook_that_changes_something_is_explained_as_the_model_sees_it(where, images):
    model, (name, put) = unfolded(), FORWARD_HOOKS[where]
    logits = model(images)
    put(model.get_submodule(name))
    found = assert_as_in_the_full_graph(model, images)
    assert not torch.equal(found.logits, logits)


@pytest.mark.parametrize("where", BACKWARD_HOOKS)
def test_a_backward_hook_that_changes_a_gradient_changes_the_explanation(where, images):
    model, (name, put) = unfolded(), BACKWARD_HOOKS[where]
    before = assert_as_in_the_full_graph(model, images)
    put(model.get_submodule(name))
    found = assert_as_in_the_full_graph(model, images)
    assert torch.equal(found.heatmap, before.heatmap * 2)


@pytest.mark.parametrize("where", BACKWARD_HOOKS)
def test_a_backward_hook_changes_each_of_several_targets_alike(where, images):
    model, (name, put) = unfolded(), BACKWARD_HOOKS[where]
    put(model.get_submodule(name))
    choices = {"layer": "features.3", "normalize": "none", "relu": False}
    together = explain(model, images, target=[[0, 3]] * 3, **choices)
    single = [explain(model, images, target=k, **choices).heatmap for k in (0, 3)]
    assert torch.equal(together.heatmap, torch.stack(single, 1)) and together.valid.all()


def test_a_backward_hook_before_the_layer_is_not_run_for_an_explanation_nor_does_it_disturb_one(images):
    model, runs = unfolded(), []
    expected = explain(model, images, layer="features.3").heatmap
    model.features[0].register_full_backward_hook(lambda *_: runs.append(1))
    assert torch.equal(explain(model, images, layer="features.3").heatmap, expected) and not runs
    model(images.requires_grad_()).sum().backward()
    assert runs == [1]


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # the layer's input has no graph
def test_a_backward_hook_at_the_layer_is_shown_the_gradient_that_is_explained(images):
    model, shown = unfolded(), []
    _, gradients, _ = full_graph(model, "features.3", images, of_class(1))
    model.features[3].register_full_backward_hook(lambda _, __, output: shown.extend(output))
    assert_as_in_the_full_graph(model, images)
    assert torch.equal(shown[-1], gradients)


@pytest.mark.parametrize("always", [True, False])
def test_hooks_on_all_modules_there_are_act_in_an_explanation(always, images):
    model = unfolded()
    logits = model(images)
    handle = torch_module.register_module_forward_hook(
        lambda module, _, output: changed(output) if isinstance(module, nn.Conv2d) else None, always_call=always
    )
    try:
        found = assert_as_in_the_full_graph(model, images)
    finally:
        handle.remove()
    assert not torch.equal(found.logits, logits)
    assert torch.equal(explain(model, images, layer="features.3").logits, logits)


@pytest.mark.parametrize("layer", ["features.3", None])
def test_a_hook_that_is_called_even_on_failure_is_called_once_and_the_failure_comes_out(layer, images):
    model, runs = ConvNet(), []
    model.head[4].register_forward_pre_hook(lambda *_: 1 / 0)
    model.head.register_forward_hook(lambda *_: runs.append("head"), always_call=True)
    model.features[3].register_forward_hook(lambda *_: runs.append("layer"), always_call=True)
    with unchanged(model), pytest.raises(ZeroDivisionError):
        explain(model, images, layer=layer)
    assert runs == ["layer", "head"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("place", ["features.0", "features.3", "features.4", "head", ""])
def test_an_own_hook_that_raises_leaves_no_trace(place, kind, images):
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
            found = explain(compiled, images, target=1, layer=layer)
        assert torch.equal(found.heatmap, expected.heatmap) and found.layer == expected.layer
        with torch.no_grad():
            assert torch.equal(compiled(images), found.logits)


def test_a_hook_put_on_during_the_forward_stays(images):
    model, runs = ConvNet(), []
    model.at_head = lambda _: model.features[0].register_forward_hook(lambda *_: runs.append(1))
    explain(model, images, layer="features.3")
    assert len(model.features[0]._forward_hooks) == 1 and not runs
    explain(model, images, layer="features.3")
    assert len(model.features[0]._forward_hooks) == 2 and runs == [1]


class Keeping(nn.Module):
    """Hooks of its own keep what modules return, and a decoder reads that: MiDaS, and transformers' hidden states."""

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
def test_what_a_hook_of_the_model_keeps_has_a_part_in_the_gradient(layer, changes, images):
    torch.manual_seed(6)
    model = Keeping(changes)
    kept = []
    # What a hook has changed is explained as the model sees it, apart from what an earlier hook has kept.
    handle = model.get_submodule(layer).register_forward_hook(
        lambda _, __, output: kept.append(output), prepend=not changes
    )
    logits = model(images)
    handle.remove()
    (gradients,) = torch.autograd.grad(logits[:, 1].sum(), kept[0])
    for name in (layer, [layer]):
        with unchanged(model):
            found = explain(model, images, target=1, layer=name, normalize="none", relu=False)
        assert torch.equal(found.logits, logits)
        expected = cam(kept[0].detach(), gradients, (16, 16), normalize="none", relu=False)[0]
        torch.testing.assert_close(found.heatmap, expected)
    assert explain(model, images, target=1, relu=False).layer == "high"
