"""Where a network reads its class token, the backward leaves out the rows of zeros of all other tokens: same numbers.

Behind a large linear layer it leaves out what of its weight meets only zeros. Nowhere else is anything left out, and
nothing that other code could notice is left behind.
"""

import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from importlib.util import module_from_spec

import pytest
import torch
from networks import ConvNet, do_nothing
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode, is_in_torch_dispatch_mode
from torchvision.models import VisionTransformer

import gradcam_fast
from gradcam_fast import gradients, zero_rows

needs_kernel = pytest.mark.skipif(not gradcam_fast.backend().kernels[0].fused, reason="there is no kernel for the CPU")

TOKENS = 1 + 8 * 8
LAST = "encoder.layers.encoder_layer_1.ln_1"


class Recording(TorchDispatchMode):
    """How many rows went into each product, forward or backward, and how many queries into attention's backward."""

    def __init__(self):
        super().__init__()
        self.products, self.skinny, self.attention = [], [], []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation is torch.ops.aten.mm.default:
            self.products.append(len(args[0]))
        if operation.name() == "gradcam_fast::skinny_mm":
            self.skinny.append(len(args[0]))
        if operation is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default:
            self.attention.append(args[0].shape[2])
        return operation(*args, **(kwargs or {}))


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
        patch.setattr(gradients, "without_zero_rows", lambda *arguments: nullcontext())
        return gradcam_fast.explain(model, pictures, **choices)


def assert_as_with_all_rows(monkeypatch, model, pictures, tolerance=2e-5, **choices):
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


def test_only_the_class_tokens_go_back_through_the_last_block(transformer, pictures):
    with Recording() as seen:
        gradcam_fast.explain(transformer, pictures, layer=LAST)
    of_all_three, of_keys_and_values = 3, 3 * TOKENS
    assert seen.products[-5:] == [3, 3, 3, of_all_three, of_keys_and_values]
    assert seen.attention == [1]


# Behind frozen parameters PyTorch multiplies them as a batch that shares one matrix.
@pytest.mark.parametrize("frozen", [False, True])
def test_nor_do_others_for_several_targets(transformer, pictures, frozen):
    with Recording() as seen:
        gradcam_fast.explain(transformer.requires_grad_(not frozen), pictures, layer=LAST, topk=5)
    assert seen.products[-5:] == [5 * 3, 5 * 3, 5 * 3, 5 * 3, 5 * 3 * TOKENS]


@pytest.mark.parametrize("name", ["_push_mode", "_pop_mode", "_scaled_dot_product_flash_attention_for_cpu_backward"])
def test_without_a_name_of_pytorchs_own_the_numbers_are_the_same(transformer, pictures, monkeypatch, name):
    expected = gradcam_fast.explain(transformer, pictures, layer=LAST)
    monkeypatch.setattr(torch.utils._python_dispatch if name.endswith("mode") else torch.ops.aten, name, None)
    fallen_back = module_from_spec(zero_rows.__spec__)
    zero_rows.__spec__.loader.exec_module(fallen_back)
    monkeypatch.undo()
    monkeypatch.setattr(gradients, "without_zero_rows", fallen_back.without_zero_rows)
    with Recording() as seen:
        found = gradcam_fast.explain(transformer, pictures, layer=LAST)
    assert_close(found, expected)
    expected = [3 * TOKENS] * 4 if name.endswith("mode") else [3, 3, 3, 3, 3 * TOKENS]
    assert seen.products[-len(expected) :] == expected
    assert seen.attention == [TOKENS]


MASK = torch.linspace(-2, 2, 64 * 64).sin().reshape(64, 64)


@pytest.mark.parametrize(
    "attention",
    [{}, {"is_causal": True}, {"attn_mask": MASK}, {"scale": 3.0}],
    ids=["plain", "causal", "masked", "scaled"],
)
@pytest.mark.parametrize(
    "reads", [lambda t: t[:, 37], lambda t: t[:, 30:33].mean(1), lambda t: t.mean(1)], ids=["one", "three", "all"]
)
def test_every_kind_of_attention_has_the_maps_of_all_rows(pictures, monkeypatch, reads, attention):
    model = Mixing(reads, **attention).eval()
    assert_as_with_all_rows(monkeypatch, model, pictures, layer="norm", method="layercam")


def test_where_most_tokens_are_read_nothing_is_left_out(pictures):
    with Recording() as seen:
        gradcam_fast.explain(Mixing(lambda tokens: tokens[:, :48].mean(1)).eval(), pictures, layer="norm")
    assert seen.products == [3 * 64, 3 * 64]
    assert seen.attention == [64]


def test_maps_are_none_of_its_business(pictures):
    """Seen by a hook on the logits: behind maps no mode is on, behind tokens one is."""
    modes = []

    def logits_of(model):
        def forward(images):
            logits = model(images) * 1
            if logits.requires_grad:
                logits.register_hook(lambda gradient: modes.append(_get_current_dispatch_mode()))
            return logits

        return forward

    for layer in ("patches", "norm"):
        model = Mixing().eval()
        model.forward = logits_of(model.forward)
        gradcam_fast.explain(model, pictures, layer=layer)
    assert modes[0] is None
    assert modes[1] is not None


@needs_kernel
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("asked", "rows"), [({}, 3), ({"target": [0, 3, 1]}, 3), ({"topk": 5}, 15)])
def test_a_large_layer_has_the_maps_of_all_its_weight(images, monkeypatch, asked, rows, frozen, bias):
    model = LargeHead(bias).requires_grad_(not frozen)
    with Recording() as seen:
        gradcam_fast.explain(model, images, layer="features", **asked)
    assert seen.skinny == [rows]
    assert_as_with_all_rows(monkeypatch, model, images, layer="features", method="layercam", **asked)


@needs_kernel
def test_so_it_has_for_a_score_of_the_callers_own(images, monkeypatch):
    asked = {"layer": "features", "target": lambda logits: logits[:, 1] - logits[:, 2] - logits[:, 3] * logits[:, 4]}
    with Recording() as seen:
        gradcam_fast.explain(LargeHead(), images, **asked)
    assert seen.skinny == [3]
    assert_as_with_all_rows(monkeypatch, LargeHead(), images, **asked)


@needs_kernel
def test_so_it_has_behind_tokens(pictures, monkeypatch):
    model = Mixing(lambda tokens: tokens.mean(1)).eval()
    model.head = nn.Sequential(nn.Linear(16, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 5))
    with Recording() as seen:
        gradcam_fast.explain(model, pictures, layer="norm")
    assert seen.skinny == [3]
    assert_as_with_all_rows(monkeypatch, model, pictures, layer="norm", method="layercam")


@pytest.mark.parametrize(
    ("count", "dtype", "topk", "rows"),
    [(17, torch.float32, None, 17), (4, torch.float32, 5, 20), (3, torch.float64, None, 3)],
)
def test_for_many_rows_and_other_types_its_weight_is_multiplied_as_ever(monkeypatch, count, dtype, topk, rows):
    model, images = LargeHead().to(dtype), torch.randn(count, 3, 16, 16, dtype=dtype)
    modes = []
    with monkeypatch.context() as patch, Recording() as seen:
        patch.setattr(zero_rows, "_PUSH", modes.append)
        patch.setattr(zero_rows, "_POP", do_nothing)
        gradcam_fast.explain(model, images, layer="features", topk=topk)
    assert seen.products == [rows, rows] and not modes


def test_layers_of_which_not_all_are_tokens_are_explained_as_with_all_rows(pictures, monkeypatch):
    assert_as_with_all_rows(monkeypatch, Mixing().eval(), pictures, layer=["patches", "norm"], method="layercam")


def test_a_layer_three_times_as_wide_behind_it_need_be_no_attention(pictures, monkeypatch):
    """Only what lies where queries would is looked at: the first third of its outputs."""
    for third in range(3):
        model = Mixing(lambda tokens: tokens.mean(1)).eval()
        wide = nn.Linear(16, 48)
        alive = torch.zeros(64, 48)
        alive[:, [i for i in range(48) if i // 16 != third]] = 1
        alive[:5] = 1
        model.reads = lambda tokens, wide=wide, alive=alive: (wide(tokens) * alive).unflatten(2, (3, 16)).sum((1, 2))
        with Recording() as seen:
            gradcam_fast.explain(model, pictures, layer="norm")
        assert (3 * 5 in seen.products) == (third == 0)
        assert_as_with_all_rows(monkeypatch, model, pictures, layer="norm", method="layercam")


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


def test_the_mode_lives_while_it_is_on(transformer, pictures, monkeypatch):
    """PyTorch 2.10 does not keep it alive, and crashed."""
    pushed, alive = [], []
    monkeypatch.setattr(zero_rows, "_PUSH", lambda mode: pushed.append(weakref.ref(mode)))
    monkeypatch.setattr(zero_rows, "_POP", do_nothing)

    def score(logits):
        logits.register_hook(lambda gradient: alive.append(pushed[0]() is not None))
        return logits[:, 0]

    gradcam_fast.explain(transformer, pictures, target=score, layer=LAST)
    assert alive == [True]


def test_two_threads_explain_as_one(transformer, pictures):
    expected = gradcam_fast.explain(transformer, pictures, layer=LAST)
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(lambda _: gradcam_fast.explain(transformer, pictures, layer=LAST), range(8)):
            assert_close(found, expected)
    assert not is_in_torch_dispatch_mode()


def test_an_image_whose_gradient_is_zero_has_an_empty_map(transformer, pictures):
    def score(logits):
        return logits[:, 0] * torch.tensor([1.0, 0.0, 1.0])

    found = gradcam_fast.explain(transformer, pictures, target=score, layer=LAST)
    assert found.valid.tolist() == [True, False, True]
    assert not found.heatmap[1].any()


def test_nothing_stays_behind_also_when_a_backward_fails(transformer, pictures):
    def fail(gradient):
        # Set for the whole process, PyTorch's flag would keep other threads from compiling.
        assert not is_in_torch_dispatch_mode()
        assert _get_current_dispatch_mode() is not None
        raise RuntimeError("of its own")

    class Failing(VisionTransformer):
        def forward(self, images):
            logits = super().forward(images)
            if logits.requires_grad:
                logits = logits * 1
                logits.register_hook(fail)
            return logits

    transformer.__class__ = Failing
    with pytest.raises(RuntimeError, match="of its own"):
        gradcam_fast.explain(transformer, pictures, layer=LAST)
    assert _get_current_dispatch_mode() is None
    assert torch.mm(torch.zeros(64, 2), torch.full((2, 2), torch.inf)).isnan().all()
