"""What is no map of the images, and is not taken for one: weights, words, queries, another input's maps.

And when a layer that was found is remembered. Knows nothing of the maps' numbers.
"""

import gc
import weakref
from functools import partial

import pytest
import torch
from support.naive import full_graph, gradcam
from support.networks import ConvNet
from support.tolerances import RECIPE_PARITY
from support.unchanged import unchanged
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from gradcam_fast import explain
from gradcam_fast._capture.capture import _NEED_GRAD_ENABLED
from gradcam_fast._layer_search.search import _FOUND
from gradcam_fast._layout.token_grid import _is_merged


def network(channels=3):
    return nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU())


def head(features):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, 5))


@pytest.mark.parametrize("batch", [1, 4])
def test_what_makes_a_parametrized_weight_is_not_explained(batch):
    torch.manual_seed(0)
    model = nn.Sequential(network(), weight_norm(nn.Conv2d(8, 8, 3)), head(8)).eval()
    found = explain(model, torch.randn(batch, 3, 12, 12), relu=False)
    assert found.layer == "1"
    with pytest.raises(ValueError, match="is not in Sequential"):
        explain(model, torch.randn(batch, 3, 12, 12), layer="1.parametrizations.weight")


class Levels(nn.Module):
    """A coarse output of the trunk, and a fine one of a branch behind it."""

    def __init__(self):
        super().__init__()
        self.trunk, self.branch = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.runs = 0

    def forward(self, images):
        self.runs += 1
        trunk = self.trunk(images)
        return trunk.mean((2, 3)), self.branch(trunk).mean((2, 3))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_layer_does_not_depend_on_what_was_asked_before(order):
    by_output, by_target, images = Levels(), Levels(), torch.randn(2, 3, 9, 9)
    targets = [lambda out: out[0][:, 1], lambda out: out[1][:, 1]]
    for member in order:
        expected = ("trunk", "branch")[member]
        assert explain(by_output, images, output=lambda out, member=member: out[member], relu=False).layer == expected
        assert explain(by_output, images, output=lambda out: out[member], relu=False).layer == expected  # noqa: B023
        assert explain(by_output, images, output=partial(lambda k, out: out[k], member), relu=False).layer == expected
        assert explain(by_target, images, target=targets[member], relu=False).layer == expected


def test_a_function_written_anew_for_every_call_asks_for_no_new_search():
    model, images = Levels(), torch.randn(2, 3, 9, 9)
    explain(model, images, target=lambda out: out[1][:, 0], relu=False)
    model.runs = 0
    for column in range(4):
        explain(model, images, target=lambda out: out[0][:, column], relu=False)  # noqa: B023
    assert model.runs == 2 + 3


def test_what_is_remembered_does_not_grow_and_keeps_no_model():
    class Itself:
        """Tokens by an object that cannot be hashed."""

        __hash__ = None

        def __call__(self, maps):
            return maps

    model, images = ConvNet(), torch.randn(2, 3, 16, 16)
    for _ in range(5):
        explain(model, images, tokens=lambda maps, model=model: maps * model.training + maps)
        explain(model, images, tokens=Itself())
    assert len(_FOUND[model]) == 2
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


class Detector(nn.Module):
    """DETR in small: a convolution, tokens of its positions, and queries that look at them."""

    def __init__(self, queries, channels=16):
        super().__init__()
        self.backbone = nn.Conv2d(3, channels, 8, 8)
        self.queries = nn.Parameter(torch.randn(1, queries, channels))
        self.encoder, self.decoder = nn.LayerNorm(channels), nn.MultiheadAttention(channels, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(channels), nn.Linear(channels, 5)
        self.eval()

    def forward(self, images):
        tokens = self.encoder(self.backbone(images).flatten(2).mT)
        queries = self.queries.expand(len(images), -1, -1)
        return self.head(self.norm(self.decoder(queries, tokens, tokens)[0])).mean(1)


@pytest.mark.parametrize("queries", [9, 16, 100])
def test_queries_are_no_patches(queries):
    torch.manual_seed(1)
    assert explain(Detector(queries), torch.randn(2, 3, 64, 64), relu=False).layer == "encoder"


def test_a_convolution_within_patches_knows_nothing_of_their_grid():
    """TNT: pixels of each patch go through a convolution by themselves."""

    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.pixels, self.norm = nn.Conv2d(3, 16, 3, 3), nn.LayerNorm(16)
            self.head, self.mix = nn.Linear(16, 5), nn.MultiheadAttention(16, 2, batch_first=True)
            self.eval()

        def forward(self, images):
            patches = images.unfold(2, 6, 6).unfold(3, 6, 6).permute(0, 2, 3, 1, 4, 5)
            tokens = self.norm(self.pixels(patches.flatten(0, 2)).mean((2, 3)).unflatten(0, (len(images), -1)))
            return self.head((tokens + self.mix(tokens, tokens, tokens)[0])[:, 0])

    torch.manual_seed(1)
    assert explain(Nested(), torch.randn(2, 3, 30, 30), relu=False).layer == "mix"


def test_strides_may_be_lists_or_one_number(images):
    model = ConvNet()
    expected = explain(model, images)
    for convolution in model.features[::3]:
        convolution.stride = list(convolution.stride)
    assert torch.equal(explain(model, images).heatmap, expected.heatmap)
    model.features[0].stride = 2
    assert torch.equal(explain(model, images).heatmap, expected.heatmap)


@pytest.mark.parametrize(
    ("before", "after", "are"),
    [
        ((56, 56), (28, 28), True),
        ((7, 7), (4, 4), True),
        ((7, 7), (3, 3), True),
        ((7, 10), (2, 3), True),
        ((14, 14), (10, 10), False),
        ((14, 14), (7, 14), False),
        ((8, 8), (8, 8), False),
        ((8, 8, 8), (4, 4), False),
    ],
)
def test_patches_are_merged_by_two_or_four(before, after, are):
    assert _is_merged(before, after) == are


def test_where_queries_are_all_there_is_to_read_the_warning_says_what_they_would_be():
    torch.manual_seed(1)
    model = Detector(100)
    del model.encoder
    model.encoder = lambda tokens: tokens
    said = r"'backbone', only cuts .* whose tokens would be 10x10 patches, but no convolution .*tokens=.*layer="
    with pytest.warns(UserWarning, match=said):
        assert explain(model, torch.randn(2, 3, 64, 64), relu=False).layer == "backbone"


class Captioned(nn.Module):
    """Tokens of the image, and behind them those of a text, both of a number that fits a grid; a score of both."""

    def __init__(self):
        super().__init__()
        self.patch, self.image = nn.Conv2d(3, 16, 8, 8), nn.LayerNorm(16)
        self.words, self.text = nn.Embedding(9, 16), nn.LayerNorm(16)
        self.eval()

    def forward(self, pixels, words):
        image = self.image(self.patch(pixels).flatten(2).mT).amax(1)
        return (image[:, None] * self.text(self.words(words)).amax(1)).sum(-1)


@pytest.mark.parametrize("texts", [2, 3])
def test_words_are_no_patches(texts):
    torch.manual_seed(2)
    words = torch.randint(0, 9, (texts, 16))
    found = explain(Captioned(), (torch.randn(2, 3, 32, 32), words), relu=False)
    assert found.layer == "image" and found.valid.all()


class Two(nn.Module):
    """A picture, and its depth at another resolution, each with a network of its own or with the same."""

    def __init__(self, second):
        super().__init__()
        self.first, self.head = network(), nn.Linear(16, 5)
        self.second = self.first if second is None else second
        self.eval()

    def forward(self, picture, other):
        return self.head(torch.cat([self.first(picture).mean((2, 3)), self.second(other).mean((2, 3))], 1))


def test_of_several_inputs_the_layer_sees_the_first_that_is_images():
    torch.manual_seed(3)
    found = explain(Two(network(1)), (torch.rand(2, 3, 16, 16), torch.rand(2, 1, 12, 12)), relu=False)
    assert found.layer == "first" and found.heatmap.shape == (2, 16, 16)


def test_a_module_that_last_ran_on_the_other_input_is_not_taken_for_the_first():
    with pytest.raises(ValueError, match="'first' was last run on another input than the first one of images"):
        explain(Two(None), (torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)))


class Last(nn.Module):
    """A residual block that ends in a module which only hands on what comes in."""

    def __init__(self, last):
        super().__init__()
        self.branch, self.last = nn.Conv2d(8, 8, 3, padding=1), last

    def forward(self, maps):
        return self.last(maps + self.branch(maps))


class DropPathBlock(Last):
    """A block that is called after what it drops."""


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "block", [Last(nn.ReLU()), Last(nn.Identity()), Last(nn.Dropout(0.1)), DropPathBlock(nn.Identity())]
)
def test_a_block_is_its_sum_and_not_its_last_branch(block, training, images):
    torch.manual_seed(5)
    model = nn.Sequential(network(), block, head(8)).train(training)
    assert explain(model, images, relu=False).layer == "1"


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("last", [nn.Dropout(0.1), nn.MaxPool2d(2)])
def test_what_drops_or_pools_what_a_layer_made_is_no_layer(last, training, images):
    torch.manual_seed(5)
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), last), head(8)).train(training)
    # In eval mode a dropout returns the very maps, so that they are the whole trunk's.
    same = isinstance(last, nn.Dropout) and not training
    assert explain(model, images, relu=False).layer == ("0" if same else "0.1")


class Squeezed(nn.Module):
    """The only channel of its input, (B,H,W)."""

    def forward(self, maps):
        return maps[:, 0]


class Returning(nn.Module):
    """A classifier that returns its features, too; or a network of a depth map (B,H,W) or (B,1,H,W)."""

    def __init__(self, what):
        super().__init__()
        self.trunk, self.block, self.head, self.what = network(), Last(nn.ReLU()), head(8), what
        self.depth = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))
        self.squeezed = Squeezed()
        self.eval()

    def forward(self, images):
        maps = self.block(self.trunk(images))
        if self.what == "features":
            return self.head(maps), maps
        return self.squeezed(self.depth(maps)) if self.what == "(B,H,W)" else self.depth(maps)


def test_logits_beside_a_mask_make_the_mask_no_less_dense():
    """segmentation_models_pytorch returns (mask, label)."""
    torch.manual_seed(7)
    model = Returning("(B,1,H,W)")
    model.depth[2] = nn.Conv2d(8, 4, 1)
    model.register_forward_hook(lambda _, args, mask: (mask, model.head(model.trunk(args[0]))))
    found = explain(model, torch.randn(1, 3, 16, 16), target=lambda out: out[0][:, 1].mean((1, 2)), relu=False)
    assert found.layer == "depth.0"


@pytest.mark.parametrize("choices", [{"output": lambda out: out[0]}, {"target": lambda out: out[0][:, 1]}])
def test_features_beside_the_logits_make_no_dense_output(choices):
    torch.manual_seed(7)
    assert explain(Returning("features"), torch.randn(2, 3, 16, 16), relu=False, **choices).layer == "block"


def test_of_named_outputs_the_logits_decide_whether_they_are_dense():
    """CLIPSeg returns embeddings (B,D) beside them."""
    torch.manual_seed(7)
    model = Returning("(B,1,H,W)")
    model.depth[2] = nn.Conv2d(8, 4, 1)
    model.register_forward_hook(lambda _, __, logits: {"logits": logits, "embeddings": logits.mean((2, 3))})
    found = explain(model, torch.randn(1, 3, 16, 16), target=lambda out: out["logits"][:, 1].mean((1, 2)), relu=False)
    assert found.layer == "depth.0"


@pytest.mark.parametrize("what", ["(B,H,W)", "(B,1,H,W)"])
@pytest.mark.parametrize("sides", [(64, 64), (256, 256), (48, 64)])
def test_a_depth_map_is_explained_before_its_last_convolution(what, sides):
    torch.manual_seed(7)
    images = torch.randn(1, 3, *sides)
    found = explain(Returning(what), images, target=lambda depth: depth.flatten(1).mean(1), relu=False)
    assert found.layer == "depth.0"


class Heads(nn.Module):
    """Attention whose norm sees (B,heads,N,C), as that of MViT does."""

    def __init__(self):
        super().__init__()
        self.patch, self.norm, self.norm_v = nn.Conv2d(3, 16, 8, 8), nn.LayerNorm(16), nn.LayerNorm(8)
        self.head = nn.Linear(16, 5)
        self.eval()

    def forward(self, images):
        tokens = self.norm(self.patch(images).flatten(2).mT)
        values = self.norm_v(tokens.unflatten(-1, (2, 8)).transpose(1, 2)).transpose(1, 2).flatten(-2)
        return self.head((tokens + values).mean(1))


def test_heads_and_tokens_are_no_sides_of_an_image():
    torch.manual_seed(8)
    assert explain(Heads(), torch.randn(2, 3, 64, 64), relu=False).layer == "norm"


class Frozen(nn.Module):
    """A trunk that the model itself runs without gradients, as one does where only the head is trained."""

    def __init__(self):
        super().__init__()
        self.trunk, self.head, self.runs = network(), head(8), []
        self.eval()

    def forward(self, images):
        self.runs.append(1)
        with torch.no_grad():
            maps = self.trunk(images)
        return self.head(maps)


@pytest.mark.parametrize("layer", [None, "trunk"])
def test_a_trunk_run_without_gradients_is_explained(layer, images):
    torch.manual_seed(4)
    model = Frozen()
    same = nn.Sequential(model.trunk, model.head)
    activations, gradients, _ = full_graph(same, "0", images, lambda output: output.max(1).values)
    with unchanged(model):
        found = explain(model, images, layer=layer)
    assert found.layer == "trunk"
    torch.testing.assert_close(
        found.heatmap.double(), gradcam(activations, gradients, (16, 16)), rtol=0, atol=RECIPE_PARITY
    )
    model.runs.clear()
    explain(model, images, layer=layer)
    assert len(model.runs) == 1


def test_a_layer_behind_the_score_teaches_nothing():
    model = Levels()
    with pytest.raises(RuntimeError, match="does not depend on layer 'branch'"):
        explain(model, torch.randn(2, 3, 9, 9), layer="branch", output=lambda out: out[0])
    assert model not in _NEED_GRAD_ENABLED


class Counting(nn.Module):
    """Counts its forwards in a buffer, in place or not."""

    def __init__(self, in_place):
        super().__init__()
        self.trunk, self.head, self.in_place = network(), head(8), in_place
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, images):
        if self.in_place:
            self.runs += 1
        else:
            self.runs = self.runs + 1
        return self.head(self.trunk(images))


@pytest.mark.parametrize("in_place", [True, False])
def test_in_eval_mode_an_explanation_writes_what_one_prediction_writes(in_place, images):
    model = Counting(in_place).eval()
    for runs in (1, 2):
        explain(model, images)
        assert model.runs == runs


def test_images_may_have_their_channels_last(images):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = ConvNet()

        def forward(self, images):
            return self.model(images.movedim(-1, 1))

    model = Last()
    sides = torch.randn(2, 3, 16, 24)
    expected = explain(model.model, sides)
    found = explain(model, sides.movedim(1, -1))
    assert found.layer == f"model.{expected.layer}" and torch.equal(found.heatmap, expected.heatmap)
