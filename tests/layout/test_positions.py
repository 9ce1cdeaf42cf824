"""The positions of a map are places in the images, where the way back to these goes through no keys and no values."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcam_fast import explain
from gradcam_fast._layout.positions import Positions, positions_of

# A number of tokens, and of queries: both fit the same grid.
COUNT, CHANNELS = 16, 8


def has_positions(returned, images):
    return positions_of(returned.grad_fn, {id(images)}) is Positions.OF_IMAGES


def softmax_attention(queries, keys, values):
    return F.dropout((queries @ keys.mT / 3 + 1).softmax(-1), 0.1) @ values


def two_heads(queries, keys, values):
    split = (tensor.unflatten(-1, (2, -1)).transpose(1, 2) for tensor in (queries, keys, values))
    return softmax_attention(*split).transpose(1, 2).flatten(2)


ATTENTIONS = {
    "fused": F.scaled_dot_product_attention,
    "by hand": softmax_attention,
    "by hand with heads": two_heads,
    "nn.MultiheadAttention": lambda q, k, v: nn.MultiheadAttention(CHANNELS, 2, batch_first=True)(q, k, v)[0],
    "nn.MultiheadAttention without weights": (
        lambda q, k, v: nn.MultiheadAttention(CHANNELS, 2, batch_first=True)(q, k, v, need_weights=False)[0]
    ),
}


@pytest.fixture
def images():
    return torch.randn(2, COUNT, CHANNELS, requires_grad=True)


@pytest.fixture
def queries():
    return nn.Parameter(torch.randn(1, COUNT, CHANNELS)).expand(2, -1, -1)


@pytest.fixture(params=ATTENTIONS, ids=str)
def attention(request):
    return ATTENTIONS[request.param]


def test_self_attention_keeps_positions(attention, images):
    tokens = nn.Linear(CHANNELS, CHANNELS)(images)
    assert has_positions(attention(tokens, tokens, tokens), images)


def test_learned_queries_have_no_positions(attention, images, queries):
    assert not has_positions(attention(queries, images, images), images)


def test_a_decoder_of_several_layers_has_no_positions(attention, images, queries):
    norm, mlp = nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, CHANNELS, bias=False)
    for _ in range(2):
        queries = norm(queries + attention(queries, queries, queries))
        queries = norm(queries + attention(queries, images, images))
        queries = queries + mlp(queries).relu()
    assert not has_positions(queries, images)


def test_frozen_queries_have_no_positions(attention, images, queries):
    assert not has_positions(attention(queries.detach(), images, images), images)


def test_deformable_attention_has_the_positions_of_its_queries(images, queries):
    def sampled(tokens, queries):
        maps, places = tokens.mT.unflatten(2, (4, 4)), nn.Linear(CHANNELS, 2)(queries)[:, None]
        weights = nn.Linear(CHANNELS, COUNT)(queries).softmax(-1)[:, :, :1]
        return F.grid_sample(maps, places, align_corners=False)[:, :, 0].mT * weights

    assert not has_positions(sampled(images, queries), images)
    assert has_positions(sampled(images, images), images)


def test_sampling_at_fixed_places_keeps_positions(images):
    maps = images.mT.unflatten(2, (4, 4))
    assert has_positions(F.grid_sample(maps, torch.rand(2, 4, 4, 2), align_corners=False), images)


def test_image_tokens_that_read_queries_keep_their_positions(attention, images, queries):
    assert has_positions(images + attention(images, queries, queries), images)
    assert has_positions(attention(images, queries, queries), images)


def test_mixing_of_tokens_by_a_matrix_keeps_positions(images):
    learned, fixed = nn.Parameter(torch.randn(COUNT, COUNT)), torch.randn(COUNT, COUNT)
    assert has_positions(learned @ images, images) and has_positions(fixed @ images, images)


SHUFFLED = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "pick",
    [
        lambda tokens: tokens.gather(1, SHUFFLED[None, :, None].expand(2, -1, CHANNELS)),
        lambda tokens: tokens.take_along_dim(SHUFFLED[None, :, None], 1),
        lambda tokens: tokens[:, SHUFFLED],
        lambda tokens: tokens.index_select(1, SHUFFLED),
        lambda tokens: tokens.index_select(-2, SHUFFLED),
        lambda tokens: tokens[(SHUFFLED % 2 == 0).expand(2, -1)].unflatten(0, (2, -1)),
    ],
)
def test_an_index_picks_tokens(pick, images):
    picked = nn.LayerNorm(CHANNELS)(pick(images * 2))
    assert positions_of(picked.grad_fn, {id(images)}) is Positions.PICKED


@pytest.mark.parametrize(
    "keep",
    [
        lambda tokens: tokens[:, torch.arange(COUNT) + 1],
        lambda tokens: tokens.index_select(1, torch.arange(1, COUNT + 1)),
        lambda tokens: tokens.gather(1, torch.arange(COUNT)[None, :, None].expand(2, -1, CHANNELS)),
        lambda tokens: tokens[torch.arange(2).repeat_interleave(3), torch.arange(1, 4).repeat(2)],
        lambda tokens: tokens[:, 1:],
        lambda tokens: tokens[:, :, torch.randperm(CHANNELS)],
        lambda tokens: tokens[torch.tensor([1, 0])],
        lambda tokens: tokens[:, None][:, :, SHUFFLED],
    ],
)
def test_an_index_of_something_else_or_in_order_keeps_positions(keep, images):
    assert has_positions(keep(torch.cat([images, images[:, :1]], 1)), images)


def test_positions_are_those_of_the_leaves_that_are_given(images):
    others = torch.randn(2, COUNT, CHANNELS, requires_grad=True)
    assert not has_positions(others.relu(), images)
    assert has_positions(torch.cat([others, images], 1), images)


class Decoder(nn.Module):
    """A detector whose queries are as many as the patches, in tokens (B,N,C) or (B,1,N,C)."""

    def __init__(self, layout):
        super().__init__()
        self.layout, self.norm = layout, nn.LayerNorm(CHANNELS)
        self.backbone, self.encoder = nn.Conv2d(3, CHANNELS, 8, 8), nn.LayerNorm(CHANNELS)
        self.queries, self.head = nn.Parameter(torch.randn(1, COUNT, CHANNELS)), nn.Linear(CHANNELS, 5)
        self.eval()

    def forward(self, images):
        tokens, queries = self.encoder(self.backbone(images).flatten(2).mT), self.queries.expand(len(images), -1, -1)
        if self.layout == "with an axis of prompts":
            tokens, queries = tokens[:, None], queries[:, None]
        queries = self.norm(queries + F.scaled_dot_product_attention(queries, tokens, tokens))
        return self.head(queries.flatten(1, -2)[:, 0])


@pytest.mark.parametrize("layout", ["tokens", "with an axis of prompts"])
def test_queries_as_many_as_the_patches_are_not_explained(layout):
    torch.manual_seed(1)
    explanation = explain(Decoder(layout), torch.randn(2, 3, 32, 32), relu=False)
    assert explanation.layer == "encoder" and explanation.valid.all()
