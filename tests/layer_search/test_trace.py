"""A trial run notes each feature map under its outermost module, and runs the model once, on one image."""

import gc

import pytest
import torch
from support.networks import conv_relu, pooled_head
from torch import nn

from gradcam_fast import explain


def test_maps_are_named_after_the_outermost_module_that_returns_them():
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.efficientnet_b0(weights=None).eval()
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(explain(model, images).heatmap, explain(model, images, layer="features.8").heatmap)


class OneReluForAll(nn.Module):
    """conv, relu, conv, relu, pool, fc, relu, fc, with one ReLU module for all calls."""

    def __init__(self, head):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        self.relu, self.head = nn.ReLU(), head

    def forward(self, images):
        maps = self.relu(self.conv2(self.relu(self.conv1(images))))
        return self.head[1](self.relu(self.head[0](maps.mean((-2, -1), keepdim=True).flatten(1))))


def test_a_module_whose_last_call_returns_no_maps_is_skipped():
    model = OneReluForAll(nn.ModuleList([nn.Linear(5, 6), nn.Linear(6, 2)]))
    explanation = explain(model, torch.randn(2, 3, 12, 12), relu=False)
    assert explanation.layer == "conv2" and explanation.valid.all()


def test_a_layer_with_another_batch_size_is_neither_found_nor_accepted():
    class Folding(nn.Module):
        """Makes two crops of each image and stacks them in the batch."""

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, images):
            return self.conv(torch.cat([images, images.flip(-1)])).mean((-2, -1)).unflatten(0, (2, -1)).mean(0)

    images = torch.randn(2, 3, 9, 9)
    with pytest.raises(ValueError, match="no spatial feature map"):
        explain(Folding(), images)
    with pytest.raises(ValueError, match=r"'conv' returns shape \(4, 4, 7, 7\) for a batch of 2"):
        explain(Folding(), images, layer="conv")


def test_a_layer_may_return_a_dict_with_any_keys():
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.levels, self.head = Levels(), nn.Linear(4, 2)

        def forward(self, images):
            return self.head(self.levels(images)[0].mean((-2, -1)))

    class Levels(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, images):
            return {0: self.conv(images), 1: None}

    explanation = explain(Pyramid(), torch.randn(2, 3, 9, 9), relu=False)
    assert explanation.layer == "levels" and explanation.valid.all()


class TwoStreams(nn.Module):
    """Blocks that hand on pixels and, behind them, the tokens of patches after a class token, as TNT's do."""

    def __init__(self):
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 16, 8, 8), nn.Parameter(torch.randn(1, 1, 16))
        self.blocks, self.head = nn.ModuleList(TwoStreamBlock() for _ in range(3)), nn.Linear(16, 5)

    def forward(self, images):
        patches = self.patch(images).flatten(2).mT
        pixels, tokens = patches.reshape(-1, 4, 4), torch.cat([self.token.expand(len(images), -1, -1), patches], 1)
        for block in self.blocks:
            pixels, tokens = block(pixels, tokens)
        return self.head(tokens[:, 0])


class TwoStreamBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.pixels, self.norm = nn.Linear(4, 4), nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)

    def forward(self, pixels, tokens):
        inside = self.pixels(pixels)  # attention among the pixels of each patch
        pixels = pixels + nn.functional.scaled_dot_product_attention(inside, inside, inside)
        class_token, patches = tokens[:, :1], tokens[:, 1:]
        tokens = torch.cat([class_token, patches + pixels.reshape(patches.shape)], 1)
        return pixels, tokens + nn.functional.scaled_dot_product_attention(*self.qkv(self.norm(tokens)).chunk(3, -1))


def test_the_graph_is_cut_at_every_tensor_that_a_block_returns():
    torch.manual_seed(0)
    explanation = explain(TwoStreams().eval(), torch.randn(2, 3, 64, 96), relu=False)
    assert explanation.layer == "blocks.2.norm" and explanation.valid.all()


class PositionEmbedding(nn.Module):
    """A number for each position of maps, whatever they hold."""

    def forward(self, maps):
        return torch.arange(maps[0, 0].numel(), dtype=maps.dtype).sin().unflatten(0, maps.shape[2:]).expand_as(maps)


class AddsPositionsTwice(nn.Module):
    """A position embedding is added before the encoder, and once more to what the class token reads."""

    def __init__(self):
        super().__init__()
        self.patch, self.positions, self.encoder = nn.Conv2d(3, 16, 8, 8), PositionEmbedding(), nn.LayerNorm(16)
        self.token, self.keys, self.head = nn.Parameter(torch.randn(1, 1, 16)), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, images):
        maps = self.patch(images)
        positions = self.positions(maps).flatten(2).mT
        tokens = self.encoder(maps.flatten(2).mT + positions)
        class_token = self.token.expand(len(images), -1, -1)
        read = nn.functional.scaled_dot_product_attention(class_token, self.keys(tokens + positions), tokens)
        return self.head(read[:, 0])


def test_a_position_embedding_made_in_the_shape_of_maps_is_not_explained():
    torch.manual_seed(0)
    explanation = explain(AddsPositionsTwice().eval(), torch.randn(2, 3, 32, 32), relu=False)
    assert explanation.layer == "encoder" and explanation.valid.all()


class FrozenTrunkAndWords(nn.Module):
    """A trunk that runs without gradients, and maps behind it that words weigh."""

    def __init__(self):
        super().__init__()
        self.trunk, self.words = nn.Conv2d(3, 8, 3, 2), nn.Embedding(9, 8)
        self.decoder, self.head = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()), nn.Linear(8, 5)

    def forward(self, images, words):
        with torch.no_grad():
            maps, gate = self.trunk(images), self.words(words).mean(1)
        return self.head((self.decoder(maps) * gate[..., None, None]).mean((2, 3)))


def test_a_trunk_without_gradients_is_followed_also_beside_words():
    torch.manual_seed(0)
    words = torch.randint(0, 9, (2, 4))
    explanation = explain(FrozenTrunkAndWords().eval(), (torch.randn(2, 3, 32, 32), words), relu=False)
    assert explanation.layer == "decoder" and explanation.valid.all()


class PooledEarly(nn.Module):
    """A pooled map, made at the start and returned again by the last container."""

    def __init__(self, idle):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, 3), nn.Sequential(nn.Sequential(nn.AvgPool2d(2)))
        self.idle = nn.Sequential(*(nn.Linear(2, 2) for _ in range(idle)))
        self.last = nn.Sequential(nn.Identity())
        self.eval()

    def forward(self, images):
        maps = self.pool(self.conv(images))
        self.idle(images[:, 0, :2, 0])
        return self.last(maps).mean((2, 3))


@pytest.mark.parametrize("idle", range(24, 36))
def test_a_pooled_map_is_skipped_wherever_the_graph_begins(idle):
    model = PooledEarly(idle)
    assert explain(model, torch.randn(1, 3, 10, 10), relu=False).layer == "conv"


class Deep(nn.Module):
    """A hundred convolutions; the score depends on the first `depends` of them."""

    def __init__(self, depends):
        super().__init__()
        self.depends = depends
        self.blocks = nn.ModuleList(nn.Conv2d(3 if n == 0 else 2, 2, 3, padding=1) for n in range(100))
        self.graph = []
        self.eval()

    def forward(self, images):
        maps = kept = images
        self.graph.append([])
        for number, block in enumerate(self.blocks, 1):
            maps = block(maps)
            self.graph[-1].append(torch.is_grad_enabled())
            if number == self.depends:
                kept = maps
        return kept.mean((2, 3)) + 0 * maps.detach().mean((2, 3))


@pytest.mark.parametrize("depends", [20, 98])
def test_one_trial_run_finds_the_layer_wherever_it_lies(depends):
    model = Deep(depends)
    assert explain(model, torch.randn(3, 3, 8, 8), relu=False).layer == f"blocks.{depends - 1}"
    # The trial run has a graph everywhere, the explanation behind the layer only.
    assert [sum(grad_enabled) for grad_enabled in model.graph] == [100, 101 - depends]


def mixed(tokens):
    """Attention without weights: every token reads all."""
    return tokens + (tokens @ tokens.mT).softmax(-1) @ tokens


class PositionsByEmbedding(nn.Module):
    """Position embeddings come from a module, as (1,N,C), before the tokens of the image do."""

    def __init__(self):
        super().__init__()
        self.positions, self.cut = nn.Embedding(65, 16), nn.Conv2d(3, 16, 8, 8)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, images):
        patches = self.cut(images).flatten(2).mT
        tokens = torch.cat([patches.new_zeros(len(images), 1, 16), patches], 1)
        return self.head(mixed(self.norm(tokens + self.positions(torch.arange(65)[None])))[:, 0])


@pytest.mark.parametrize("count", [1, 2])
def test_position_embeddings_are_not_asked_which_tokens_are_patches(count):
    torch.manual_seed(0)
    assert explain(PositionsByEmbedding().eval(), torch.randn(count, 3, 64, 64), relu=False).layer == "norm"


class FewerTokens(nn.Module):
    """Four strided convolutions, then every fourth token of a row and of a column: more merges than are guessed."""

    def __init__(self):
        super().__init__()
        self.convs = nn.Sequential(*(nn.Conv2d(c, 2 * c, 3, 2, 1) for c in (3, 6, 12, 24)))
        self.widen, self.head = nn.Linear(48, 64), nn.Linear(64, 5)
        self.last = nn.LayerNorm(64)

    def forward(self, images):
        tokens = self.convs(images)[:, :, ::4, ::4].flatten(2).mT
        return self.head(self.last(self.widen(tokens)).mean(1))


def test_tokens_merged_more_often_than_is_guessed_are_read_by_asking_the_model():
    torch.manual_seed(0)
    assert explain(FewerTokens().eval(), torch.randn(2, 3, 256, 256), relu=False).layer == "last"


def test_a_search_leaves_no_tensors_to_the_garbage_collector():
    model, images = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), pooled_head(4)), torch.rand(2, 3, 16, 16)

    def tensors():
        return sum(isinstance(found, torch.Tensor) for found in gc.get_objects())

    explain(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), pooled_head(4)), images)  # fills what is kept for good
    gc.collect()
    gc.disable()
    try:
        before = tensors()
        explain(model, images)
        assert tensors() == before
    finally:
        gc.enable()


class WithOwnDerivatives(nn.Module):
    """Differentiates in its forward by torch.func, which allows no hooks on saved tensors."""

    def __init__(self):
        super().__init__()
        self.trunk, self.head = conv_relu(), nn.Linear(8, 5)
        self.eval()

    def forward(self, images):
        pooled = self.trunk(images).mean((2, 3))
        return self.head(pooled + torch.func.grad(lambda values: values.cos().sum())(pooled))


def test_a_model_that_differentiates_by_itself_is_searched(images):
    explanation = explain(WithOwnDerivatives(), images, target=1, relu=False)
    assert explanation.layer == "trunk" and explanation.valid.all()


class WritesIntoMaps(nn.Module):
    """Writes into what its modules returned, some of which these have saved for a backward."""

    def __init__(self):
        super().__init__()
        self.conv1, self.sigmoid, self.conv2 = nn.Conv2d(3, 8, 3, 2, 1), nn.Sigmoid(), nn.Conv2d(8, 8, 3, 2, 1)
        self.head = nn.Linear(8, 5)
        self.eval()

    def forward(self, images):
        maps = self.sigmoid(self.conv1(images))
        before = maps * 2
        maps.add_(1)
        return self.head(self.conv2(maps).relu_().mean((2, 3))) + 0 * before.mean()


def test_maps_that_are_saved_once_may_be_written_into(images):
    explanation = explain(WritesIntoMaps(), images, target=1, relu=False)
    assert explanation.layer == "conv2" and explanation.valid.all()
