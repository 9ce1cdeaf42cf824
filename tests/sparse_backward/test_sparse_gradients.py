"""Where a network reads its class token, the backward leaves out the zeros of all other tokens: same maps.

Behind a large linear layer it leaves out the part of its weight that meets only zeros. test_block_rules.py has the
operations one by one, test_decision.py the graphs that are left to the ordinary backward.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from support.networks import ConvNet
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

import gradcam_fast
from gradcam_fast._capture import gradients
from gradcam_fast._sparse_backward import graph
from gradcam_fast.ops import skinny_mm

needs_kernel = pytest.mark.skipif(not gradcam_fast.backend().kernels[0].fused, reason="there is no kernel for the CPU")

TOKENS = 1 + 8 * 8
LAST = "encoder.layers.encoder_layer_1.ln_1"


class Seen:
    """What a backward did: the rows in products of matrices and in those by our operator, and dense operations."""

    def __init__(self):
        self.products, self.skinny, self.dense = [], [], []


@pytest.fixture
def seen(monkeypatch):
    seen, mm, by_pytorch = Seen(), skinny_mm.mm, graph._by_pytorch

    def count_rows(rows, matrix):
        (seen.skinny if skinny_mm.is_skinny(rows, matrix) else seen.products).append(len(rows))
        return mm(rows, matrix)

    def note_name(operation, gradients):
        seen.dense.append(operation.node.name())
        return by_pytorch(operation, gradients)

    monkeypatch.setattr(skinny_mm, "mm", count_rows)
    monkeypatch.setattr(graph, "_by_pytorch", note_name)
    return seen


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
        patch.setattr(gradients, "sparse_gradients", lambda *arguments: None)
        return gradcam_fast.explain(model, pictures, **choices)


@contextmanager
def sparse_gradients_wanted(monkeypatch, wanted):
    real = gradients.sparse_gradients

    def checked(*arguments):
        sparse = real(*arguments)
        assert (sparse is not None) == wanted
        return sparse

    with monkeypatch.context() as patch:
        patch.setattr(gradients, "sparse_gradients", checked)
        yield


def assert_as_with_all_rows(monkeypatch, model, pictures, tolerance=2e-5, *, sparse=True, **choices):
    with sparse_gradients_wanted(monkeypatch, sparse):
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
    assert not seen.dense and found.valid.all()


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
    assert not seen.dense


def test_tokens_far_apart_are_asked_alone(pictures, seen):
    gradcam_fast.explain(Mixing(lambda t: t[:, 3] - t[:, 60]).eval(), pictures, layer="norm", topk=2)
    assert seen.products == [2 * 3] * 2 and not seen.dense


def test_where_most_tokens_are_read_attention_has_all_queries(pictures, seen):
    gradcam_fast.explain(Mixing(lambda tokens: tokens[:, :48].mean(1)).eval(), pictures, layer="norm")
    assert seen.dense == ["MeanBackward1", "ScaledDotProductFlashAttentionForCpuBackward0"]


def test_only_layers_of_tokens_have_a_sparse_backward(pictures, monkeypatch):
    for layer, sparse in (("patches", False), ("norm", True), (["patches", "norm"], False)):
        assert_as_with_all_rows(monkeypatch, Mixing().eval(), pictures, sparse=sparse, layer=layer, method="layercam")


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
    assert not seen.products and not seen.skinny and not seen.dense


def test_batches_of_products_behind_the_tokens_are_multiplied_as_ever(pictures, monkeypatch):
    one = torch.eye(64).roll(3, 0)
    mixing, sparse = torch.randn(3, 16, 16), torch.stack([one, one.mT, one + one.mT]).to_sparse()
    for reads, some, in_blocks in (
        (lambda tokens: torch.bmm(tokens, mixing)[:, 0], pictures, True),
        (lambda tokens: torch.bmm(sparse, tokens.expand(3, -1, -1)).sum(0)[:1], pictures[:1], False),
    ):
        model = Mixing(reads).eval()
        assert_as_with_all_rows(monkeypatch, model, some, sparse=in_blocks, layer="norm", method="layercam", target=0)


def test_a_sparse_matrix_behind_the_tokens_is_multiplied_as_ever(pictures, monkeypatch):
    mixing = torch.eye(64).roll(3, 0).to_sparse()
    model = Mixing(lambda tokens: torch.sparse.mm(mixing, tokens[0])[:1]).eval()
    assert_as_with_all_rows(monkeypatch, model, pictures[:1], sparse=False, layer="norm", method="layercam")


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
