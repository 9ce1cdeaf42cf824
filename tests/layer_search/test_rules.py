"""The rules of the layer search: which outputs are feature maps, and which of these is the layer to explain."""

import warnings
from pathlib import Path

import pytest
import torch
from support.networks import conv_relu, pooled_head
from torch import nn

from gradcam_fast import explain
from gradcam_fast._layer_search import rules


class ResidualBlock(nn.Module):
    """The sum of its input and a convolution, passed through a last module."""

    def __init__(self, last):
        super().__init__()
        self.branch, self.last = nn.Conv2d(8, 8, 3, padding=1), last

    def forward(self, maps):
        return self.last(maps + self.branch(maps))


class DropPathBlock(ResidualBlock):
    """A block whose class name contains the word Drop."""


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "block",
    [
        ResidualBlock(nn.ReLU()),
        ResidualBlock(nn.Identity()),
        ResidualBlock(nn.Dropout(0.1)),
        DropPathBlock(nn.Identity()),
    ],
)
def test_the_output_of_a_residual_block_is_its_sum(block, training, images):
    torch.manual_seed(5)
    model = nn.Sequential(conv_relu(), block, pooled_head(8)).train(training)
    assert explain(model, images, relu=False).layer == "1"


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("last", [nn.Dropout(0.1), nn.MaxPool2d(2)])
def test_dropout_and_pooling_modules_are_not_found(last, training, images):
    torch.manual_seed(5)
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), last), pooled_head(8)).train(training)
    # In eval mode a dropout returns its input itself, so that the maps are named after the whole trunk.
    returns_input = isinstance(last, nn.Dropout) and not training
    assert explain(model, images, relu=False).layer == ("0" if returns_input else "0.1")


class Squeezed(nn.Module):
    """The only channel of its input, (B,H,W)."""

    def forward(self, maps):
        return maps[:, 0]


class Returning(nn.Module):
    """A classifier that also returns its features, or a network that returns a depth map (B,H,W) or (B,1,H,W)."""

    def __init__(self, output):
        super().__init__()
        self.trunk, self.block, self.head, self.output = conv_relu(), ResidualBlock(nn.ReLU()), pooled_head(8), output
        self.depth = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))
        self.squeezed = Squeezed()
        self.eval()

    def forward(self, images):
        maps = self.block(self.trunk(images))
        if self.output == "features":
            return self.head(maps), maps
        return self.squeezed(self.depth(maps)) if self.output == "(B,H,W)" else self.depth(maps)


def test_a_mask_returned_beside_logits_is_a_dense_output():
    """segmentation_models_pytorch returns (mask, label)."""
    torch.manual_seed(7)
    model = Returning("(B,1,H,W)")
    model.depth[2] = nn.Conv2d(8, 4, 1)
    model.register_forward_hook(lambda _, args, mask: (mask, model.head(model.trunk(args[0]))))
    explanation = explain(model, torch.randn(1, 3, 16, 16), target=lambda out: out[0][:, 1].mean((1, 2)), relu=False)
    assert explanation.layer == "depth.1"


@pytest.mark.parametrize("choices", [{"output": lambda out: out[0]}, {"target": lambda out: out[0][:, 1]}])
def test_features_returned_beside_logits_are_no_dense_output(choices):
    torch.manual_seed(7)
    assert explain(Returning("features"), torch.randn(2, 3, 16, 16), relu=False, **choices).layer == "block"


def test_the_member_named_logits_decides_whether_the_output_is_dense():
    """CLIPSeg returns embeddings (B,D) beside them."""
    torch.manual_seed(7)
    model = Returning("(B,1,H,W)")
    model.depth[2] = nn.Conv2d(8, 4, 1)
    model.register_forward_hook(lambda _, __, logits: {"logits": logits, "embeddings": logits.mean((2, 3))})
    explanation = explain(
        model, torch.randn(1, 3, 16, 16), target=lambda out: out["logits"][:, 1].mean((1, 2)), relu=False
    )
    assert explanation.layer == "depth.1"


@pytest.mark.parametrize("output", ["(B,H,W)", "(B,1,H,W)"])
@pytest.mark.parametrize("sides", [(64, 64), (256, 256), (48, 64)])
def test_a_depth_map_is_explained_before_its_last_convolution(output, sides):
    torch.manual_seed(7)
    images = torch.randn(1, 3, *sides)
    explanation = explain(Returning(output), images, target=lambda depth: depth.flatten(1).mean(1), relu=False)
    assert explanation.layer == "depth.1"


class Presenting(nn.Module):
    """A function of what came before, as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, maps):
        return self.function(maps)


PRESENTED = {
    "nothing": (),
    "sigmoid": (nn.Sigmoid(),),
    "resize and softmax": (nn.Upsample(scale_factor=2), nn.Softmax(1)),
    "pixel shuffle and tanh": (nn.PixelShuffle(2), nn.Tanh()),
    "resize by a convolution of each channel": (nn.ConvTranspose2d(4, 4, 4, 2, 1, groups=4), nn.Sigmoid()),
    "depth of its inverse": (Presenting(lambda maps: 1 / (0.1 + maps.sigmoid())),),
    "one minus": (Presenting(lambda maps: 1 - maps.sigmoid()),),
    "a product with a function of itself": (Presenting(lambda maps: maps * maps.sigmoid() - maps.tanh()),),
    "directions": (Presenting(lambda maps: nn.functional.normalize(maps, dim=1)),),
    "values of one sign, where others count less": (Presenting(lambda maps: maps.where(maps > 0, 0.1 * maps)),),
    "windows": (Presenting(lambda maps: nn.functional.unfold(maps, 2, stride=2).unflatten(2, (8, 8))),),
    "with coordinates": (Presenting(lambda maps: torch.cat([maps, torch.ones_like(maps)], 1)),),
}


@pytest.mark.parametrize("presented", PRESENTED)
def test_an_output_that_is_only_presented_by_modules_is_no_layer(presented):
    torch.manual_seed(7)
    model = nn.Sequential(
        conv_relu(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1), *PRESENTED[presented]
    )
    error = explain(model.eval(), torch.randn(2, 3, 16, 16), target=lambda out: out.pow(2).mean((1, 2, 3)), relu=False)
    assert error.layer == "2"


def test_an_output_is_more_than_a_prediction_presented_where_other_maps_go_in():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.classes, self.gate = conv_relu(), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
            self.product = Presenting(lambda maps: maps[0] * maps[1].sigmoid())

        def forward(self, images):
            maps = self.trunk(images)
            return self.product((self.classes(maps), self.gate(maps)))

    torch.manual_seed(7)
    explanation = explain(Gated(), torch.randn(2, 3, 16, 16), target=lambda out: out[:, 1].mean((1, 2)), relu=False)
    assert explanation.layer == "trunk"


class NormOfHeads(nn.Module):
    """Attention with a norm of (B,heads,N,C), as in MViT."""

    def __init__(self):
        super().__init__()
        self.patch, self.norm, self.norm_v = nn.Conv2d(3, 16, 8, 8), nn.LayerNorm(16), nn.LayerNorm(8)
        self.head = nn.Linear(16, 5)
        self.eval()

    def forward(self, images):
        tokens = self.norm(self.patch(images).flatten(2).mT)
        values = self.norm_v(tokens.unflatten(-1, (2, 8)).transpose(1, 2)).transpose(1, 2).flatten(-2)
        return self.head((tokens + values).mean(1))


def test_heads_and_tokens_are_not_taken_for_the_sides_of_an_image():
    torch.manual_seed(8)
    assert explain(NormOfHeads(), torch.randn(2, 3, 64, 64), relu=False).layer == "norm"


def test_a_segmentation_is_explained_before_its_class_maps_whatever_region_is_asked():
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=5).eval()
    images = torch.randn(1, 3, 64, 64)

    def of_columns(columns, **choices):
        def score(out):
            return out["out"][:, 2, :, columns].mean((-2, -1))

        return explain(model, images, target=score, relu=False, **choices)

    for columns in (slice(0, 16), slice(48, 64), slice(30, 31), slice(None)):
        assert of_columns(columns).layer == "classifier.2"
    # Behind this ReLU only a 1x1 convolution follows: methods that pool the gradients see the class, no region.
    left, right = (of_columns(columns, method="layercam") for columns in (slice(0, 16), slice(48, 64)))
    assert (left.heatmap - right.heatmap).abs().max() > 0.05


def test_a_head_of_zeros_does_not_change_the_layer_found():
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.vit_b_32(weights=None).eval()
    assert not model.heads.head.weight.any()
    with pytest.warns(UserWarning, match="zero everywhere"):
        explanation = explain(model, torch.randn(1, 3, 224, 224))
    assert explanation.layer == "encoder.layers.encoder_layer_11.ln_1" and not explanation.valid.any()


class TokenProjection(nn.Module):
    """Patch tokens behind a class token, a norm, and a linear layer that projects them."""

    def __init__(self):
        super().__init__()
        self.patch, self.norm, self.projection = nn.Conv2d(3, 16, 8, 8), nn.LayerNorm(16), nn.Linear(16, 16)
        self.head, self.class_token = nn.Linear(16, 5), nn.Parameter(torch.randn(1, 1, 16))

    def forward(self, images):
        patches = self.patch(images).flatten(2).mT
        tokens = self.norm(torch.cat([self.class_token.expand(len(images), -1, -1), patches], 1))
        return self.head(self.projection(tokens).mean(1))


class AtTwoPositions(nn.Module):
    """Class maps, of which two positions make the logits."""

    def __init__(self):
        super().__init__()
        self.trunk, self.maps = conv_relu(), nn.Conv2d(8, 5, 3)

    def forward(self, images):
        maps = self.maps(self.trunk(images))
        return maps[:, :, 3, 3] + maps[:, :, 5, 5]


class LastStep(nn.Module):
    """A recurrent layer over all positions, of which the last step is read."""

    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.GRU(8, 8, batch_first=True)

        def forward(self, maps):
            return self.layer(maps.flatten(2).mT)[0].mT.unflatten(2, maps.shape[2:])

    def __init__(self):
        super().__init__()
        self.trunk, self.steps, self.fc = nn.Conv2d(3, 8, 8, 8), self.Steps(), nn.Linear(8, 5)

    def forward(self, images):
        return self.fc(self.steps(self.trunk(images))[:, :, -1, -1])


class MeanPosition(nn.Module):
    """The mean position under a softmax of a convolution."""

    def __init__(self):
        super().__init__()
        self.trunk, self.attention, self.fc = conv_relu(), nn.Conv2d(8, 2, 3), nn.Linear(2, 5)

    def forward(self, images):
        attention = self.attention(self.trunk(images)).flatten(2).softmax(2)
        return self.fc((attention * torch.linspace(0, 1, attention.shape[2])).sum(2))


class ValuesOfHeads(NormOfHeads):
    """What the norm of (B,heads,N,C) returns, alone."""

    def forward(self, images):
        tokens = self.norm(self.patch(images).flatten(2).mT)
        return self.head(self.norm_v(tokens.unflatten(-1, (2, 8)).transpose(1, 2)).transpose(1, 2).flatten(-2).mean(1))


class MapsBehindTheFirst(nn.Module):
    """A block that returns other maps before those that the score depends on."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8, 3, 3) / 8)

        def forward(self, maps):
            return maps + 1, nn.functional.conv2d(maps, self.weight, padding=1).relu()

    def __init__(self):
        super().__init__()
        self.stem, self.block, self.fc = nn.Conv2d(3, 8, 3, 2, 1), self.Block(), nn.Linear(8, 5)

    def forward(self, images):
        first, second = self.block(self.stem(images))
        return self.fc(second.mean((2, 3))) + 0 * first.mean()


class RunsAgain(nn.Module):
    """A trunk that runs a second time on a part of the image, for nothing."""

    def __init__(self):
        super().__init__()
        self.stem, self.trunk, self.head = conv_relu(), conv_relu(8), pooled_head(8)

    def forward(self, images):
        maps = self.stem(images)
        logits = self.head(self.trunk(maps))
        self.trunk(maps[:, :, ::2, ::2])
        return logits


def with_module(module):
    """A convolution, a module, and a head on what the module returns."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), module, pooled_head(8))


# Rule: (model, whether it is in training mode, the layer found, the layer that would be found without the rule).
RULE_CASES = {
    "passes on": (lambda: with_module(nn.Dropout(0.1)), True, "0", "1"),
    "pooling": (lambda: with_module(nn.MaxPool2d(2)), False, "0", "1"),
    "padding": (lambda: with_module(nn.ReflectionPad2d(2)), False, "0", "1"),
    "softmax": (lambda: with_module(nn.Softmax(dim=1)), False, "0", "1"),
    "projection of tokens": (TokenProjection, False, "norm", "projection"),
    "own output": (AtTwoPositions, False, "trunk", "maps"),
    "axes of attention": (ValuesOfHeads, False, "norm", "norm_v"),
    "behind the first tensor": (MapsBehindTheFirst, False, "stem", "block"),
    "earlier call": (RunsAgain, False, "stem", "trunk"),
    "one place": (LastStep, False, "trunk", "steps"),
    "rounding noise": (MeanPosition, False, "trunk.0", "attention"),
}


@pytest.mark.parametrize("name", RULE_CASES)
def test_a_rule_excludes_the_layer_that_would_be_found_without_it(name, monkeypatch):
    make_model, training, layer, layer_without_rule = RULE_CASES[name]
    torch.manual_seed(1)
    model, images = make_model().train(training), torch.randn(2, 3, 64, 64)
    explanation = explain(model, images, relu=False)
    assert explanation.layer == layer and explanation.valid.all()
    warnings.simplefilter("ignore")
    monkeypatch.setattr(rules, "RULES", tuple(rule for rule in rules.RULES if rule.name != name))
    torch.manual_seed(1)
    model = make_model().train(training)
    assert explain(model, images, relu=False).layer == layer_without_rule


def test_every_rule_has_a_name_a_reason_and_a_case():
    names = [rule.name for rule in rules.RULES]
    assert len(set(names)) == len(names) and set(names) == set(RULE_CASES)
    for rule in rules.RULES:
        assert len(rule.why.split()) > 3 and rule.why[0].islower() and not rule.why.endswith(".")


def test_the_documentation_names_every_rule():
    page = (Path(__file__).parents[2] / "docs" / "layers.md").read_text()
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    assert [row for row in rows if row != "rule"] == [rule.name for rule in rules.RULES]


@pytest.mark.parametrize(
    ("module", "passes_on"),
    [
        (nn.Identity(), True),
        (nn.Dropout(0.5), True),
        (nn.Dropout2d(0.5), True),
        (nn.AlphaDropout(0.5), True),
        (DropPathBlock(nn.Identity()), False),  # it has submodules
        (nn.ReLU(), False),
        (nn.Sequential(nn.Identity()), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_only_identities_and_leaf_modules_that_drop_pass_on_their_input(module, passes_on):
    assert rules.passes_on(module) == passes_on
