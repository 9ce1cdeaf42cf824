"""Whether a backward runs in blocks is decided before anything runs: hooks and code of the model's see one backward.

It is the ordinary one, and they see in it what they see without the library: plain tensors, target by target.
"""

import pytest
import torch
from support.networks import ConvNet
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn import functional as F
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torchvision.models import VisionTransformer

import gradcam_fast
from gradcam_fast._capture import gradients
from gradcam_fast._capture.hooks import count_hooks
from gradcam_fast._sparse_backward import sparse_gradients
from gradcam_fast._sparse_backward.known_operations import BACKWARD_RULES

LAST = "encoder.layers.encoder_layer_1.ln_1"
ONE, THREE = {"target": 1}, {"target": [[1, 2, 0]] * 3}


class Transformer(VisionTransformer):
    """`between` is applied to the tokens behind the last norm, of which the first is read."""

    def __init__(self):
        super().__init__(32, 4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5)
        nn.init.normal_(self.heads.head.weight)
        self.between = lambda tokens: tokens
        self.eval()

    def forward(self, images):
        tokens = self._process_input(images)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), tokens], 1)
        return self.heads(self.between(self.encoder(tokens))[:, 0])


@pytest.fixture
def pictures():
    return torch.randn(3, 3, 32, 32)


@pytest.fixture
def model():
    return Transformer()


@pytest.fixture
def sparse(monkeypatch):
    """For each explanation whether its backward ran in blocks."""
    ran, real = [], gradients.sparse_gradients
    differentiate = gradients._ordinary_gradients

    def sparse_gradients(*arguments):
        gradients_of_sources = real(*arguments)
        if gradients_of_sources is not None:
            ran.append(True)
        return gradients_of_sources

    def ordinary_gradients(*arguments):
        ran.append(False)
        return differentiate(*arguments)

    monkeypatch.setattr(gradients, "sparse_gradients", sparse_gradients)
    monkeypatch.setattr(gradients, "_ordinary_gradients", ordinary_gradients)
    return ran


def explain(model, pictures, target=1, **choices):
    return gradcam_fast.explain(model, pictures, target=target, layer=LAST, method="layercam", **choices)


def assert_close(found, expected):
    assert expected.valid.all()
    torch.testing.assert_close(found.raw_max, expected.raw_max, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.heatmap, expected.heatmap, rtol=0, atol=2e-5)


def on_tokens(hook):
    """A forward's own code that registers a hook on the tokens behind the last norm."""

    def between(tokens):
        if tokens.requires_grad:
            hook(tokens)
        return tokens

    return between


def on_query(forward, hook):
    """The forward of an attention that registers a hook on its queries: the layer's output, as it was handed onward."""

    def hooked(query, *args, **kwargs):
        if query.requires_grad:
            query.register_hook(hook)
        return forward(query, *args, **kwargs)

    return hooked


# Each puts on the model something that is shown the gradients on their way, and appends them to a list.
HOOKS = {
    "a tensor": lambda model, shown: setattr(
        model, "between", on_tokens(lambda tokens: tokens.register_hook(lambda gradient: shown.append(gradient)))
    ),
    "a node, behind it": lambda model, shown: setattr(
        model, "between", on_tokens(lambda tokens: tokens.grad_fn.register_hook(lambda _, outs: shown.extend(outs)))
    ),
    "a node, before it": lambda model, shown: setattr(
        model, "between", on_tokens(lambda tokens: tokens.grad_fn.register_prehook(lambda outs: shown.extend(outs)))
    ),
    "several tensors": lambda model, shown: setattr(
        model,
        "between",
        on_tokens(lambda t: torch.autograd.graph.register_multi_grad_hook([t], lambda all_: shown.extend(all_))),
    ),
    "a module, full": lambda model, shown: model.encoder.ln.register_full_backward_hook(
        lambda _, inputs, outputs: shown.extend(outputs)
    ),
    "a module, before it": lambda model, shown: model.encoder.ln.register_full_backward_pre_hook(
        lambda _, outputs: shown.extend(outputs)
    ),
    "a module, not full": lambda model, shown: model.encoder.ln.register_backward_hook(
        lambda _, inputs, outputs: shown.extend(outputs)
    ),
    "what was handed onward": lambda model, shown: setattr(
        model.encoder.layers[1].self_attention,
        "forward",
        on_query(model.encoder.layers[1].self_attention.forward, lambda gradient: shown.append(gradient)),
    ),
}


@pytest.mark.filterwarnings("ignore:Using a non-full backward hook", "ignore:Full backward hook is firing")
@pytest.mark.parametrize(("asked", "times"), [(ONE, 1), (THREE, 3)])
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_is_shown_each_targets_gradient_once_as_a_plain_tensor(model, pictures, sparse, hook, asked, times):
    expected = explain(model, pictures, **asked)
    shown = []
    HOOKS[hook](model, shown)
    found = explain(model, pictures, **asked)
    shown = [gradient for gradient in shown if gradient is not None]
    assert sparse == [True, False]
    assert len(shown) == times
    assert all(
        type(gradient) is torch.Tensor and not torch._C._functorch.is_batchedtensor(gradient) for gradient in shown
    )
    assert all("tensor(" in repr(gradient) and gradient.isfinite().all() for gradient in shown)
    assert_close(found, expected)


def test_every_kind_of_hook_is_counted():
    """PyTorch shows hooks on tensors and nodes nowhere in a graph; it numbers their handles."""
    tensor, linear = torch.ones(3, requires_grad=True) * 2, nn.Linear(3, 3)
    register = [
        lambda: tensor.register_hook(print),
        lambda: tensor.grad_fn.register_hook(print),
        lambda: tensor.grad_fn.register_prehook(print),
        lambda: linear.weight.register_post_accumulate_grad_hook(print),
        lambda: linear.register_full_backward_hook(print),
        lambda: linear.register_full_backward_pre_hook(print),
        lambda: linear.register_forward_hook(print),
        lambda: torch_module.register_module_forward_hook(print),
    ]
    for put in register:
        before = count_hooks()
        put().remove()
        assert count_hooks() == before + 1


def test_hooks_of_explanations_themselves_are_not_counted(model, pictures):
    before = count_hooks()
    explain(model, pictures)
    assert count_hooks() == before


def test_a_removed_hook_is_in_the_way_no_longer(model, pictures, sparse):
    handle = model.encoder.register_forward_hook(lambda *_: None)
    explain(model, pictures)
    handle.remove()
    explain(model, pictures)
    assert sparse == [False, True]


@pytest.mark.parametrize("register", ["register_module_forward_hook", "register_module_forward_pre_hook"])
def test_a_forward_hook_on_all_modules_is_in_the_way(model, pictures, sparse, register):
    handle = getattr(torch_module, register)(lambda *_: None)
    try:
        explain(model, pictures)
    finally:
        handle.remove()
    assert sparse == [False]


def test_a_target_may_put_a_hook_on_the_logits(model, pictures, sparse):
    shown = []

    def target(logits):
        logits.register_hook(lambda gradient: shown.append(type(gradient)))
        return logits[:, 1]

    expected = explain(model, pictures)
    assert_close(explain(model, pictures, target), expected)
    assert sparse == [True, False] and shown == [torch.Tensor]


@pytest.mark.parametrize("place", ["encoder", LAST, "encoder.layers.encoder_layer_1.mlp"])
def test_a_tensor_that_retains_its_gradient_has_it_once(model, pictures, monkeypatch, sparse, place):
    kept = []

    def retain(module, args, tokens):
        if tokens.requires_grad:
            tokens.retain_grad()
            kept.append(tokens)

    model.get_submodule(place).register_forward_hook(retain)
    for _ in range(2):
        explain(model, pictures)
    assert sparse == [False, False]
    # Of a layer's own hooks, two run: on what the layer returned, and on what was handed onward.
    shown = [tokens.grad for tokens in kept if tokens.grad is not None]
    assert len(shown) == 2 and all(type(gradient) is torch.Tensor for gradient in shown)
    torch.testing.assert_close(shown[0], shown[1])
    logits = model(pictures)
    if place != LAST:
        (expected,) = torch.autograd.grad(logits[:, 1].sum(), kept[-1])
        torch.testing.assert_close(shown[0], expected)


CHANGES = {
    "scaled": lambda gradient: gradient * 2 + 1,
    "in place, a copy": lambda gradient: gradient.clone().mul_(3),
    "clamped": lambda gradient: gradient.clamp(-0.1, 0.1),
    "ones": torch.ones_like,
    "flipped": lambda gradient: gradient.flip(1),
    "item": lambda gradient: gradient / gradient.norm().item(),
    "branch": lambda gradient: gradient * 2 if gradient.abs().max() > 0.2 else gradient,
    "strides": lambda gradient: gradient.as_strided(gradient.shape, (65 * 16, 16, 1), 0).flip(1),
    "dlpack": lambda gradient: torch.from_dlpack(gradient.contiguous()) * 2,
    "list": lambda gradient: torch.tensor(gradient.tolist()) * 2,
    "numpy": lambda gradient: torch.from_numpy(gradient.numpy() * 2),
    "pointer": lambda gradient: gradient * (gradient.data_ptr() != 0),
}


@pytest.mark.parametrize("targets", [[1], [0, 3, 4]])
@pytest.mark.parametrize("change", CHANGES)
def test_a_hook_that_changes_a_gradient_changes_each_targets(model, pictures, sparse, change, targets):
    model.between = on_tokens(lambda tokens: tokens.register_hook(CHANGES[change]))
    together = explain(model, pictures, [targets] * 3)
    single = [explain(model, pictures, target).raw_max for target in targets]
    torch.testing.assert_close(together.raw_max, torch.stack(single, 1), rtol=1e-5, atol=0)
    logits = model(pictures)
    assert together.valid.all() and logits.shape == (3, 5) and not any(sparse)


def test_a_gradient_that_a_hook_keeps_is_that_of_an_ordinary_backward(model, pictures):
    kept = []
    model.between = on_tokens(lambda tokens: tokens.register_hook(kept.append))
    explain(model, pictures)
    model(pictures)[:, 1].sum().backward()
    assert [type(gradient) for gradient in kept] == [torch.Tensor] * 2
    torch.testing.assert_close(*kept)


def test_an_explanation_within_a_backward_hides_nothing_from_that_around_it(model, pictures):
    kept = []

    def hook(gradient):
        model.between = lambda tokens: tokens
        explain(model, pictures)
        kept.append(gradient * 2)

    model.between = on_tokens(lambda tokens: tokens.register_hook(hook))
    explain(model, pictures)
    assert [type(gradient) for gradient in kept] == [torch.Tensor]


def test_an_error_in_a_backward_is_the_callers(model, pictures):
    calls = []

    def fail(gradient):
        calls.append(gradient)
        raise RuntimeError("of its own")

    model.between = on_tokens(lambda tokens: tokens.register_hook(fail))
    for asked in (ONE, THREE):
        with pytest.raises(RuntimeError, match="of its own"):
            explain(model, pictures, **asked)
    assert len(calls) == 2


class Again(torch.autograd.Function):
    """A linear layer that runs again in the backward, and differentiates what it did there."""

    shown = ()

    @staticmethod
    def forward(ctx, tokens, layer, shown):
        ctx.layer, ctx.shown = layer, shown
        ctx.save_for_backward(tokens)
        return layer(tokens)

    @staticmethod
    def backward(ctx, gradient):
        ctx.shown.append(gradient)
        tokens = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            torch.autograd.backward(ctx.layer(tokens), gradient)
        return tokens.grad, None, None


@pytest.mark.parametrize(("asked", "times"), [(ONE, 1), (THREE, 3)])
def test_a_function_of_the_models_own_runs_once_per_target(model, pictures, sparse, asked, times):
    layer, shown = nn.Linear(16, 16), []
    model.between = lambda tokens: layer(tokens)
    expected = explain(model, pictures, **asked)
    model.between = lambda tokens: Again.apply(tokens, layer, shown)
    assert_close(explain(model, pictures, **asked), expected)
    assert sparse == [True, False] and [type(gradient) for gradient in shown] == [torch.Tensor] * times
    assert not any(torch._C._functorch.is_batchedtensor(gradient) for gradient in shown)
    assert {type(each.grad) for each in layer.parameters()} == {torch.Tensor}


@pytest.mark.parametrize(
    "between",
    [
        lambda tokens: torch.erf(tokens),
        lambda tokens: tokens / (1 + tokens**2),
        lambda tokens: torch.addmm(tokens[:, 0], tokens[:, 1], tokens[0, :16], alpha=2)[:, None],
        lambda tokens: F.rms_norm(tokens, (16,)).cumsum(2),
        lambda tokens: tokens.clone().mul_(2),
        lambda tokens: tokens.clone().index_fill_(1, torch.tensor([3]), 0.0),
        lambda tokens: torch.complex(tokens, tokens).abs(),
    ],
    ids=["no rule", "divided by tokens", "two factors", "cumulated", "in place", "in part in place", "complex"],
)
@pytest.mark.parametrize("asked", [ONE, THREE])
def test_other_operations_are_explained_as_ever(model, pictures, monkeypatch, between, asked):
    model.between = between
    found = explain(model, pictures, **asked)
    monkeypatch.setattr(gradients, "sparse_gradients", lambda *arguments: None)
    assert_close(found, explain(model, pictures, **asked))


@pytest.mark.parametrize(
    "between", [torch.erf, lambda tokens: torch.atan2(tokens, tokens.exp()), lambda tokens: tokens.cumsum(2)]
)
def test_an_operation_without_a_rule_is_in_the_way(model, pictures, sparse, between):
    model.between = between
    explain(model, pictures)
    assert sparse == [False]


def test_without_pytorchs_own_name_of_an_operation_the_maps_are_the_same(model, pictures, monkeypatch, sparse):
    expected = explain(model, pictures)
    monkeypatch.delitem(BACKWARD_RULES, "ScaledDotProductFlashAttentionForCpuBackward0")
    assert_close(explain(model, pictures), expected)
    assert sparse == [True, False]


def test_tensors_saved_by_hooks_are_unpacked_once(model, pictures, sparse):
    expected = explain(model, pictures)
    unpacked = []

    def between(tokens):
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: tensor, lambda tensor: unpacked.append(1) or tensor
        ):
            return F.gelu(tokens)

    model.between = F.gelu
    expected = explain(model, pictures)
    model.between = between
    assert_close(explain(model, pictures), expected)
    assert sparse == [True, True, False] and unpacked == [1]


@pytest.mark.parametrize("asked", [ONE, THREE])
def test_checkpointed_and_offloaded_parts_are_explained(model, pictures, sparse, asked):
    expected = explain(model, pictures, **asked)
    runs, block = [], model.encoder.layers[1].mlp

    class Checkpointed(nn.Module):
        def forward(self, tokens):
            return checkpoint(lambda inputs: runs.append(1) or block(inputs), tokens, use_reentrant=False)

    model.encoder.layers[1].mlp = Checkpointed()
    assert_close(explain(model, pictures, **asked), expected)
    # In the forward and once in the backward, whose hooks keep what was computed again for all targets or for each.
    assert 2 <= len(runs) <= 1 + len(asked["target"][0] if asked is THREE else [1])
    model.encoder.layers[1].mlp = block
    with torch.autograd.graph.save_on_cpu():
        assert_close(explain(model, pictures, **asked), expected)
    assert sparse == [True, False, False]


class Halved(torch.Tensor):
    """A weight of a class of its own, as quantised ones are: twice its numbers count."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        args = [arg.as_subclass(torch.Tensor) * 2 if isinstance(arg, Halved) else arg for arg in args]
        return function(*args, **(kwargs or {}))


class Wrapping(torch.Tensor):
    """A weight without memory, that PyTorch asks for the products it is in."""

    @staticmethod
    def __new__(cls, inner):
        self = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        self.inner = inner
        return self

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        def unwrap(value):
            return value.inner if isinstance(value, Wrapping) else value

        if function in (torch.ops.aten.t.default, torch.ops.aten.detach.default):
            return cls(function(args[0].inner))
        return function(*map(unwrap, args), **(kwargs or {}))


def test_weights_of_other_classes_than_pytorchs_are_in_the_way(model, pictures, sparse):
    weight = torch.randn(16, 16)
    model.between = lambda tokens: F.linear(tokens.reshape(-1, 16), weight).view(3, -1, 16)
    expected = explain(model, pictures)
    wrapping = Wrapping(weight)
    model.between = lambda tokens: F.linear(tokens.reshape(-1, 16), wrapping).view(3, -1, 16)
    assert_close(explain(model, pictures), expected)
    halved = (weight / 2).as_subclass(Halved)
    model.between = lambda tokens: F.linear(tokens.reshape(-1, 16), halved).view(3, -1, 16)
    assert_close(explain(model, pictures), expected)
    # The second multiplies by plain tensors of its own making.
    assert sparse == [True, False, True]


def test_anomaly_detection_looks_at_every_operation(model, pictures, sparse):
    expected = explain(model, pictures)
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
        assert_close(explain(model, pictures), expected)
    assert sparse == [True, False]


@pytest.mark.parametrize("asked", [ONE, {"topk": 3}])
def test_a_traced_explanation_has_no_trace_of_blocks(model, pictures, sparse, asked):
    explainer = gradcam_fast.Explainer(model, layer=LAST)

    def trace(images):
        return explainer._explain_at(explainer._request(images, **asked), explainer._layers).heatmap

    # The model is asked once which tokens are patches, and cannot be while it is traced.
    explainer(pictures)
    sparse.clear()
    traced = make_fx(trace)(pictures)
    assert sparse == [True]
    for images in (pictures, torch.randn(3, 3, 32, 32)):
        torch.testing.assert_close(traced(images), explainer(images, **asked).heatmap, rtol=0, atol=2e-6)


def test_a_trace_keeps_the_size_of_the_batch_open(model):
    tokens, weight, seeds = torch.randn(6, 17, 16), torch.randn(16, 5), torch.ones(1, 6)

    def differentiate(tokens, seeds):
        leaf = tokens.detach().requires_grad_()
        scores = (leaf[:, 0] @ weight)[:, 1]
        gradients_of_tokens = sparse_gradients(scores, [leaf], seeds, [leaf])
        assert (gradients_of_tokens is None) == (not isinstance(tokens.shape[1], int))
        if gradients_of_tokens is None:
            return torch.autograd.grad(scores, leaf, seeds[0])[0]
        return gradients_of_tokens[0][0]

    def traced(fakes):
        return make_fx(differentiate, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*fakes)

    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    only_batch = [[1, 0, 0], [0, 1]]
    fakes = [
        mode.from_tensor(
            tensor,
            symbolic_context=StatelessSymbolicContext(
                dynamic_sizes=[DimDynamic.DUCK if free else DimDynamic.STATIC for free in axes]
            ),
        )
        for tensor, axes in zip((tokens, seeds), only_batch, strict=True)
    ]
    with torch.enable_grad():
        expected = differentiate(tokens, seeds)
        for graph in (traced((tokens, seeds)), traced(fakes)):
            torch.testing.assert_close(graph(tokens[:2], seeds[:, :2]), expected[:2])


class Noted(TorchDispatchMode):
    """The products of matrices that run, by the number of rows."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.rows.append(len(args[-2]))
        return function(*args, **(kwargs or {}))


def test_a_mode_is_shown_the_operations_on_blocks(model, pictures, sparse):
    with Noted() as noted:
        explain(model, pictures)
    # The last block's own, and backward the perceptron, the projection behind attention, and the queries.
    assert sparse == [True] and noted.rows[-4:] == [3] * 4


def test_a_convnet_with_hooks_is_explained_target_by_target(images, monkeypatch):
    shown, model = [], ConvNet()
    expected = gradcam_fast.explain(model, images, topk=3, layer="features")
    model.head[2].register_full_backward_hook(lambda _, inputs, outputs: shown.extend(outputs))
    found = gradcam_fast.explain(model, images, topk=3, layer="features")
    assert len(shown) == 3 and {type(gradient) for gradient in shown} == {torch.Tensor}
    torch.testing.assert_close(found.heatmap, expected.heatmap, rtol=0, atol=1e-6)
