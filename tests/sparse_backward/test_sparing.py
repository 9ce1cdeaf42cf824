"""Where a network reads its class token, the backward leaves out the zeros of all other tokens: same numbers.

Behind a large linear layer it leaves out what of its weight meets only zeros. Nowhere else is anything left out, and
nothing that other code could notice is left behind. test_blocks.py has the operations one by one.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import module_from_spec

import pytest
import torch
from support.networks import ConvNet
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

import gradcam_fast
from gradcam_fast import _sparse_backward as sparing
from gradcam_fast._capture import gradients
from gradcam_fast._sparse_backward import attention, blocks
from gradcam_fast.ops import skinny_mm

needs_kernel = pytest.mark.skipif(not gradcam_fast.backend().kernels[0].fused, reason="there is no kernel for the CPU")

TOKENS = 1 + 8 * 8
LAST = "encoder.layers.encoder_layer_1.ln_1"


class Seen:
    """What a backward did: rows into products of matrices and into those by our operator, operations on all numbers."""

    def __init__(self):
        self.products, self.skinny, self.written_out = [], [], []


@pytest.fixture
def seen(monkeypatch):
    found, mm, on_all_numbers = Seen(), skinny_mm.mm, blocks._on_all_numbers

    def counted(rows, matrix):
        (found.skinny if skinny_mm.is_skinny(rows, matrix) else found.products).append(len(rows))
        return mm(rows, matrix)

    def noted(operation, args, kwargs):
        found.written_out.append(operation.name())
        return on_all_numbers(operation, args, kwargs)

    monkeypatch.setattr(skinny_mm, "mm", counted)
    monkeypatch.setattr(blocks, "_on_all_numbers", noted)
    return found


class Mixing(nn.Module):
    """Tokens of patches, one attention with the given arguments, and a linear layer behind it; the first is read."""

    def __init__(self, reads=lambda tokens: tokens[:, 0], **attention):
        super().__init__()
        self.patches, self.norm, self.head = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16), nn.Linear(16, 5)
        self.reads, self.attention = reads, attention

    def forward(self, images):
        tokens = self.norm(self.patches(images).flatten(2).mT)
        heads = tokens.unflatten(2, (2, 8)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(heads, heads, heads, **self.attention)
        return self.head(self.reads(F.gelu(F.linear(mixed.transpose(1, 2).flatten(2), torch.eye(16)))))


class Explicit(Mixing):
    """The same with attention written out, all parts of it linear layers of one product."""

    def __init__(self):
        super().__init__()
        self.parts = nn.Linear(16, 48)

    def forward(self, images):
        tokens = self.norm(self.patches(images).flatten(2).mT)
        query, key, value = (each.unflatten(2, (2, 8)).transpose(1, 2) for each in self.parts(tokens).chunk(3, -1))
        mixed = (query * 8**-0.5 @ key.mT).softmax(-1) @ value
        return self.head(self.reads(tokens + mixed.transpose(1, 2).flatten(2)))


class LargeHead(ConvNet):
    """Two hidden layers, the second with a weight of 16 MB."""

    def __init__(self, bias=True):
        super().__init__()
        hidden = nn.Linear(48, 2048), nn.ReLU(), nn.Linear(2048, 2048, bias), nn.ReLU()
        self.head = nn.Sequential(*self.head[:2], *hidden, nn.Linear(2048, 5)).eval()


@pytest.fixture
def pictures():
    return torch.randn(3, 3, 32, 32)


@pytest.fixture
def transformer():
    model = VisionTransformer(32, 4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5).eval()
    nn.init.normal_(model.heads.head.weight)
    return model


def with_all_rows(monkeypatch, model, pictures, **choices):
    with monkeypatch.context() as patch:
        patch.setattr(gradients, "worthwhile", lambda *arguments: False)
        return gradcam_fast.explain(model, pictures, **choices)


@contextmanager
def without_falling_back(monkeypatch):
    def sure(*arguments):
        found = sparing.without_zeros(*arguments)
        assert found is not None
        return found

    with monkeypatch.context() as patch:
        patch.setattr(gradients, "without_zeros", sure)
        yield


def assert_as_with_all_rows(monkeypatch, model, pictures, tolerance=2e-5, **choices):
    with without_falling_back(monkeypatch):
        found = gradcam_fast.explain(model, pictures, **choices)
    assert_close(found, with_all_rows(monkeypatch, model, pictures, **choices), tolerance)


def assert_close(found, expected, tolerance=2e-5):
    assert expected.valid.all()
    torch.testing.assert_close(found.raw_max, expected.raw_max, rtol=tolerance / 2, atol=0)
    torch.testing.assert_close(found.heatmap, expected.heatmap, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-6), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("layer", [LAST, "encoder.layers.encoder_layer_0.mlp", "encoder.dropout"])
@pytest.mark.parametrize("asked", [{}, {"target": [0, 3, 1]}, {"topk": 3}])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_maps_are_those_of_all_rows(transformer, pictures, monkeypatch, frozen, asked, layer, dtype, tolerance):
    model, pictures = transformer.to(dtype).requires_grad_(not frozen), pictures.to(dtype)
    assert_as_with_all_rows(monkeypatch, model, pictures, tolerance, layer=layer, method="layercam", **asked)


@pytest.mark.parametrize("asked", [None, 5])
@pytest.mark.parametrize("frozen", [False, True])
def test_only_the_class_tokens_go_back_through_the_last_block(transformer, pictures, seen, frozen, asked):
    found = gradcam_fast.explain(transformer.requires_grad_(not frozen), pictures, layer=LAST, topk=asked)
    # Two of the perceptron, one behind attention, and the queries; keys and values are products of vectors.
    assert seen.products == [3 * (asked or 1)] * 4
    assert not seen.written_out and found.valid.all()


def test_without_a_name_of_pytorchs_own_the_numbers_are_the_same(transformer, pictures, monkeypatch, seen):
    expected = gradcam_fast.explain(transformer, pictures, layer=LAST)
    operation = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default

    class Without:
        def __getattr__(self, name, aten=torch.ops.aten):
            if name == operation.overloadpacket.__name__:
                raise AttributeError(name)
            return getattr(aten, name)

    monkeypatch.delitem(blocks._WAYS, operation)
    known = len(blocks._WAYS)
    monkeypatch.setattr(torch.ops, "aten", Without())
    attention.__spec__.loader.exec_module(module_from_spec(attention.__spec__))
    assert len(blocks._WAYS) == known
    assert_close(gradcam_fast.explain(transformer, pictures, layer=LAST), expected)
    assert seen.written_out == [operation.name()]


MASK = torch.linspace(-2, 2, 64 * 64).sin().reshape(64, 64)


@pytest.mark.parametrize(
    "attention",
    [{}, {"is_causal": True}, {"attn_mask": MASK}, {"scale": 3.0}],
    ids=["plain", "causal", "masked", "scaled"],
)
@pytest.mark.parametrize(
    "reads",
    [
        lambda t: t[:, 37],
        lambda t: t[:, 30:33].mean(1),
        lambda t: t[:, 3] - t[:, 60],
        lambda t: t[:, 30:41].mean(1),
        lambda t: t.mean(1),
        lambda t: sum(i * t[:, i] for i in range(64)),
    ],
    ids=["one", "three", "two far apart", "eleven", "all", "all one by one"],
)
def test_every_kind_of_attention_has_the_maps_of_all_rows(pictures, monkeypatch, reads, attention):
    model = Mixing(reads, **attention).eval()
    assert_as_with_all_rows(monkeypatch, model, pictures, layer="norm", method="layercam")


@pytest.mark.parametrize("asked", [{}, {"topk": 3}])
@pytest.mark.parametrize("frozen", [False, True])
def test_attention_that_is_written_out_is_done_in_blocks(pictures, monkeypatch, seen, frozen, asked):
    model = Explicit().eval().requires_grad_(not frozen)
    assert_as_with_all_rows(monkeypatch, model, pictures, layer="norm", method="layercam", **asked)
    assert seen.products == [3 * asked.get("topk", 1)]
    assert not seen.written_out


def test_tokens_far_apart_are_asked_alone(pictures, seen):
    gradcam_fast.explain(Mixing(lambda t: t[:, 3] - t[:, 60]).eval(), pictures, layer="norm", topk=2)
    assert seen.products == [2 * 3] * 2 and not seen.written_out


def test_where_most_tokens_are_read_attention_has_all_queries(pictures, seen):
    gradcam_fast.explain(Mixing(lambda tokens: tokens[:, :48].mean(1)).eval(), pictures, layer="norm")
    assert any("attention" in each for each in seen.written_out)


def test_maps_are_none_of_its_business(pictures):
    """Seen by a hook on the logits: behind maps gradients are PyTorch's own, behind tokens they are not."""
    shown = []

    def logits_of(model):
        def forward(images):
            logits = model(images) * 1
            if logits.requires_grad:
                logits.register_hook(lambda gradient: shown.append(type(gradient)))
            return logits

        return forward

    for layer in ("patches", "norm"):
        model = Mixing().eval()
        model.forward = logits_of(model.forward)
        gradcam_fast.explain(model, pictures, layer=layer)
    assert shown == [torch.Tensor, blocks.Blocks]


@needs_kernel
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("asked", "rows"), [({}, 3), ({"target": [0, 3, 1]}, 3), ({"topk": 5}, 15)])
def test_a_large_layer_has_the_maps_of_all_its_weight(images, monkeypatch, seen, asked, rows, frozen, bias):
    model = LargeHead(bias).requires_grad_(not frozen)
    gradcam_fast.explain(model, images, layer="features", **asked)
    assert seen.skinny == [rows]
    assert_as_with_all_rows(monkeypatch, model, images, layer="features", method="layercam", **asked)


@needs_kernel
def test_so_it_has_for_a_score_of_the_callers_own(images, monkeypatch, seen):
    asked = {"layer": "features", "target": lambda logits: logits[:, 1] - logits[:, 2] - logits[:, 3] * logits[:, 4]}
    gradcam_fast.explain(LargeHead(), images, **asked)
    assert seen.skinny == [3]
    assert_as_with_all_rows(monkeypatch, LargeHead(), images, **asked)


@needs_kernel
def test_so_it_has_behind_tokens(pictures, monkeypatch, seen):
    model = Mixing(lambda tokens: tokens.mean(1)).eval()
    model.head = nn.Sequential(nn.Linear(16, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 5))
    gradcam_fast.explain(model, pictures, layer="norm")
    assert seen.skinny == [3]
    assert_as_with_all_rows(monkeypatch, model, pictures, layer="norm", method="layercam")


@pytest.mark.parametrize(
    ("count", "dtype", "topk"),
    [(17, torch.float32, None), (4, torch.float32, 5), (3, torch.float64, None)],
)
def test_for_many_rows_and_other_types_its_weight_is_multiplied_as_ever(monkeypatch, seen, count, dtype, topk):
    model, images = LargeHead().to(dtype), torch.randn(count, 3, 16, 16, dtype=dtype)
    assert gradcam_fast.explain(model, images, layer="features", topk=topk).valid.all()
    assert not seen.products and not seen.skinny and not seen.written_out


def test_layers_of_which_not_all_are_tokens_are_explained_as_with_all_rows(pictures, monkeypatch):
    assert_as_with_all_rows(monkeypatch, Mixing().eval(), pictures, layer=["patches", "norm"], method="layercam")


def test_batches_of_products_behind_the_tokens_are_multiplied_as_ever(pictures, monkeypatch):
    one = torch.eye(64).roll(3, 0)
    mixing, sparse = torch.randn(3, 16, 16), torch.stack([one, one.mT, one + one.mT]).to_sparse()
    for reads, some in (
        (lambda tokens: torch.bmm(tokens, mixing)[:, 0], pictures),
        (lambda tokens: torch.bmm(sparse, tokens.expand(3, -1, -1)).sum(0)[:1], pictures[:1]),
    ):
        model = Mixing(reads).eval()
        assert_as_with_all_rows(monkeypatch, model, some, layer="norm", method="layercam", target=0)


def test_a_sparse_matrix_behind_the_tokens_is_multiplied_as_ever(pictures, monkeypatch):
    mixing = torch.eye(64).roll(3, 0).to_sparse()
    model = Mixing(lambda tokens: torch.sparse.mm(mixing, tokens[0])[:1]).eval()
    assert_as_with_all_rows(monkeypatch, model, pictures[:1], layer="norm", method="layercam")


def test_an_image_whose_gradient_is_nan_spoils_no_other(transformer, pictures, monkeypatch):
    def score(logits):
        return logits[:, 0] * torch.tensor([1.0, torch.nan, 1.0])

    found = gradcam_fast.explain(transformer, pictures, target=score, layer=LAST)
    assert found.valid.tolist() == [True, False, True]
    assert found.raw_max.isnan().tolist() == [False, True, False]
    expected = with_all_rows(monkeypatch, transformer, pictures, target=0, layer=LAST)
    torch.testing.assert_close(found.heatmap[::2], expected.heatmap[::2], rtol=0, atol=2e-5)


def test_two_threads_explain_as_one(transformer, pictures):
    expected = gradcam_fast.explain(transformer, pictures, layer=LAST)
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(lambda _: gradcam_fast.explain(transformer, pictures, layer=LAST), range(8)):
            assert_close(found, expected)


def test_an_image_whose_gradient_is_zero_has_an_empty_map(transformer, pictures):
    def score(logits):
        return logits[:, 0] * torch.tensor([1.0, 0.0, 1.0])

    found = gradcam_fast.explain(transformer, pictures, target=score, layer=LAST)
    assert found.valid.tolist() == [True, False, True]
    assert not found.heatmap[1].any()


class Hooked(VisionTransformer):
    """Its class token has a hook."""

    hook = None

    def forward(self, images):
        handle = self.encoder.register_forward_hook(self.hooked)
        try:
            return super().forward(images)
        finally:
            handle.remove()

    def hooked(self, module, args, tokens):
        if tokens.requires_grad:
            tokens.register_hook(self.hook)


@pytest.mark.parametrize("asked", [{"target": 1}, {"target": [[1, 2]] * 3}])
@pytest.mark.parametrize(
    "hook",
    [
        lambda gradient: gradient * 2 + 1,
        lambda gradient: gradient.clone().mul_(3),
        lambda gradient: gradient.clamp(-0.1, 0.1),
        lambda gradient: gradient.mul_(3),
        torch.ones_like,
        lambda gradient: gradient.flip(1),
    ],
)
def test_a_hook_that_changes_a_gradient_changes_the_explanation(transformer, pictures, monkeypatch, hook, asked):
    transformer.__class__, transformer.hook = Hooked, hook
    found = gradcam_fast.explain(transformer, pictures, layer=LAST, method="layercam", **asked)
    expected = with_all_rows(monkeypatch, transformer, pictures, layer=LAST, method="layercam", **asked)
    assert_close(found, expected)


def each_alone(monkeypatch, model, pictures, targets, **choices):
    """The maps of several targets, one explanation each, as with all rows."""
    maps = [with_all_rows(monkeypatch, model, pictures, target=k, **choices).raw_max for k in targets]
    return torch.stack(maps, 1)


@pytest.mark.parametrize(
    "hook",
    [
        lambda gradient: gradient / gradient.norm().item(),
        lambda gradient: gradient * 2 if gradient.abs().max() > 0.2 else gradient,
        lambda gradient: gradient.as_strided(gradient.shape, (65 * 16, 16, 1), 0).flip(1),
        lambda gradient: torch.from_dlpack(gradient.contiguous()) * 2,
        lambda gradient: torch.tensor(gradient.tolist()) * 2,
    ],
    ids=["item", "branch", "strides", "dlpack", "list"],
)
@pytest.mark.parametrize("targets", [[1], [0, 3, 4]])
def test_what_python_makes_of_a_gradient_is_made_of_each_targets(transformer, pictures, monkeypatch, hook, targets):
    transformer.__class__, transformer.hook = Hooked, hook
    found = gradcam_fast.explain(transformer, pictures, layer=LAST, target=[targets] * 3)
    expected = each_alone(monkeypatch, transformer, pictures, targets, layer=LAST)
    torch.testing.assert_close(found.raw_max, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("memory", [lambda gradient: gradient.numpy(), lambda gradient: gradient.data_ptr()])
def test_a_hook_that_wants_the_memory_of_a_gradient_has_it(transformer, pictures, memory):
    shown = []
    expected = gradcam_fast.explain(transformer, pictures, layer=LAST)
    transformer.__class__, transformer.hook = Hooked, lambda gradient: shown.append(memory(gradient) is not None)
    assert_close(gradcam_fast.explain(transformer, pictures, layer=LAST), expected)
    assert shown == [True]


def test_a_tensor_that_retains_its_gradient_has_it_once(transformer, pictures, monkeypatch):
    def retain(module, args, tokens):
        if tokens.requires_grad:
            tokens.retain_grad()
            module.kept = tokens

    transformer.encoder.register_forward_hook(retain)
    gradcam_fast.explain(transformer, pictures, target=1, layer=LAST)
    found = transformer.encoder.kept.grad
    with_all_rows(monkeypatch, transformer, pictures, target=1, layer=LAST)
    assert type(found) is torch.Tensor
    torch.testing.assert_close(found, transformer.encoder.kept.grad)


class Again(torch.autograd.Function):
    """A linear layer that runs again in the backward, and differentiates what it did there."""

    @staticmethod
    def forward(ctx, tokens, layer):
        ctx.layer = layer
        ctx.save_for_backward(tokens)
        return layer(tokens)

    @staticmethod
    def backward(ctx, gradient):
        tokens = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            torch.autograd.backward(ctx.layer(tokens), gradient)
        return tokens.grad, None


def test_a_backward_within_the_backward_leaves_gradients_of_pytorchs_own(pictures, monkeypatch):
    layer = nn.Linear(16, 16)
    model = Mixing(lambda tokens: Again.apply(tokens, layer)[:, 0]).eval()
    found = gradcam_fast.explain(model, pictures, layer="norm", target=1)
    assert {type(each.grad) for each in layer.parameters()} == {torch.Tensor}
    assert_close(found, with_all_rows(monkeypatch, model, pictures, layer="norm", target=1))


def test_an_explanation_within_a_backward_hides_nothing_from_that_around_it(transformer, pictures):
    kept = []

    def hook(gradient):
        transformer.hook = lambda gradient: None
        gradcam_fast.explain(transformer, pictures, layer=LAST)
        transformer.hook = hook
        kept.append(gradient * 2)

    transformer.__class__, transformer.hook = Hooked, hook
    gradcam_fast.explain(transformer, pictures, layer=LAST)
    assert type(kept[-1]) is torch.Tensor


def test_a_gradient_that_a_hook_keeps_is_one_of_pytorchs_own(transformer, pictures):
    transformer.__class__ = Hooked
    transformer.hook = lambda gradient: setattr(transformer, "kept", gradient)
    gradcam_fast.explain(transformer, pictures, target=1, layer=LAST)
    kept = transformer.kept
    assert type(kept) is torch.Tensor
    transformer(pictures)[:, 1].sum().backward()
    torch.testing.assert_close(kept, transformer.kept)


def test_an_error_in_a_backward_is_the_callers(transformer, pictures):
    def fail(gradient):
        raise RuntimeError("of its own")

    transformer.__class__, transformer.hook = Hooked, fail
    with pytest.raises(RuntimeError, match="of its own"):
        gradcam_fast.explain(transformer, pictures, layer=LAST)
    assert blocks._MADE.references is None
