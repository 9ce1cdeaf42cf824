"""`list_layers`: names, kinds, shapes and grids of the layers that can be explained, in execution order."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.networks import ConvNet, Counting, DeadEnds, PatchNet
from support.unchanged import unchanged
from torch import nn

import gradcam_fast
from gradcam_fast import exceptions
from gradcam_fast.layers import LayerInfo, list_layers


def every_layer(model, images):
    return list_layers(model, images, every=True)


def test_the_layers_of_a_convolutional_network(images):
    assert every_layer(ConvNet(), images) == [
        LayerInfo("features.0", "Conv2d", (3, 8, 8, 8), (8, 8)),
        LayerInfo("features.1", "BatchNorm2d", (3, 8, 8, 8), (8, 8)),
        LayerInfo("features.2", "ReLU", (3, 8, 8, 8), (8, 8)),
        LayerInfo("features.3", "Conv2d", (3, 12, 4, 4), (4, 4)),
        LayerInfo("features.4", "ReLU", (3, 12, 4, 4), (4, 4)),
        LayerInfo("features", "Sequential", (3, 12, 4, 4), (4, 4)),
        LayerInfo("head.0", "AdaptiveAvgPool2d", (3, 12, 2, 2), (2, 2)),
    ]


@pytest.mark.parametrize("class_tokens", [0, 1])
def test_the_layers_of_a_vision_transformer(class_tokens):
    tokens = 8 * 5 + class_tokens
    assert every_layer(PatchNet(class_tokens), torch.randn(2, 3, 64, 40)) == [
        LayerInfo("patch", "Conv2d", (2, 16, 8, 5), (8, 5)),
        LayerInfo("norm", "LayerNorm", (2, tokens, 16), (8, 5)),
        LayerInfo("mix", "MultiheadAttention", (2, tokens, 16), (8, 5)),
    ]


class TwoSizes(nn.Module):
    """A tower that runs on maps of two sizes; `down` runs between its two calls."""

    def __init__(self):
        super().__init__()
        self.tower, self.down, self.same = nn.Conv2d(3, 3, 3, padding=1), nn.MaxPool2d(2), nn.Identity()

    def forward(self, images):
        return self.same(self.tower(self.down(self.tower(images)))).mean((2, 3))


def test_each_call_of_a_module_has_a_row_of_its_own_and_identities_are_left_out():
    assert every_layer(TwoSizes(), torch.randn(1, 3, 16, 12)) == [
        LayerInfo("tower", "Conv2d", (1, 3, 16, 12), (16, 12)),
        LayerInfo("down", "MaxPool2d", (1, 3, 8, 6), (8, 6)),
        LayerInfo("tower", "Conv2d", (1, 3, 8, 6), (8, 6), call=1),
    ]


def test_a_module_in_several_places_is_named_after_the_place_where_it_runs():
    activation = nn.ReLU()
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), activation), nn.Sequential(nn.Conv2d(4, 5, 3), activation))
    assert [(layer.name, layer.grid, layer.call) for layer in every_layer(model, torch.randn(1, 3, 9, 9))] == [
        ("0.0", (7, 7), 0), ("0.1", (7, 7), 0), ("0", (7, 7), 0),
        ("1.0", (5, 5), 0), ("1.1", (5, 5), 1), ("1", (5, 5), 0),
    ]  # fmt: skip


def test_the_call_of_a_row_is_the_one_that_call_names():
    activation, images = nn.ReLU(), torch.randn(2, 3, 9, 9)
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), activation), nn.Sequential(nn.Conv2d(4, 5, 3), activation))
    model.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
    rows = {layer.name: layer.call for layer in every_layer(model, images)}
    for block in ("0", "1"):
        shared = gradcam_fast.explain(model, images, target=1, layer=f"{block}.1", call=rows[f"{block}.1"])
        assert torch.equal(shared.heatmap, gradcam_fast.explain(model, images, target=1, layer=block).heatmap)


def test_the_layers_of_series_and_of_channels_last_maps():
    class ChannelsLast(nn.Module):
        def forward(self, maps):
            return maps.movedim(1, -1)

    series = nn.Sequential(nn.Conv1d(2, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    assert every_layer(series, torch.randn(2, 2, 10)) == [LayerInfo("0", "Conv1d", (2, 4, 8), (8,))]
    model = nn.Sequential(nn.Conv2d(3, 16, 8, 8), ChannelsLast(), nn.Flatten())
    assert every_layer(model, torch.randn(1, 3, 64, 40)) == [
        LayerInfo("0", "Conv2d", (1, 16, 8, 5), (8, 5)),
        LayerInfo("1", "ChannelsLast", (1, 8, 5, 16), (8, 5)),
    ]


def test_every_layer_of_the_list_on_which_the_score_depends_can_be_explained(images):
    model = ConvNet()
    for layer in every_layer(model, images):
        explanation = gradcam_fast.explain(model, images, layer=layer.name, size=layer.grid, relu=False)
        assert explanation.layer == layer.name and explanation.heatmap.shape == (3, *layer.grid)
        assert explanation.valid.all()


def test_the_layer_that_explain_finds_is_in_the_list(images):
    for model in (ConvNet(), DeadEnds()):
        names = [layer.name for layer in every_layer(model, images)]
        assert gradcam_fast.explain(model, images).layer in names


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("network", [ConvNet, Counting])
def test_listing_layers_leaves_the_model_and_the_random_numbers_unchanged(network, training, images):
    model = network().train(training)
    random_state = torch.get_rng_state()
    with unchanged(model):
        every_layer(model, images)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_model_that_raises_is_left_without_hooks(images):
    model = ConvNet()

    def fail(_):
        raise RuntimeError("in the forward")

    model.at_head = fail
    with unchanged(model), pytest.raises(RuntimeError, match="in the forward"):
        every_layer(model, images)


def test_the_model_runs_once(images):
    model = ConvNet()
    every_layer(model, images)
    assert model.calls == 1


def test_a_forward_of_another_thread_is_not_listed(images):
    model, this_thread = ConvNet(), threading.get_ident()
    expected = every_layer(model, images)

    def run_in_another_thread(_):
        if threading.get_ident() == this_thread:
            with ThreadPoolExecutor(1) as other_thread:
                other_thread.submit(model, torch.randn(3, 3, 24, 24)).result()

    model.at_head = run_in_another_thread
    assert every_layer(model, images) == expected


def test_layers_of_a_compiled_model_have_the_names_of_the_eager_model(images):
    torch._dynamo.reset()
    expected = every_layer(ConvNet(), images)
    assert every_layer(torch.compile(ConvNet(), backend="eager"), images) == expected
    model = ConvNet()
    model.features = torch.compile(model.features, backend="eager")
    assert every_layer(model, images) == expected


def test_wrong_models_and_images_are_refused(images):
    with pytest.raises(exceptions.UnsupportedModel):
        every_layer(nn.DataParallel(ConvNet()), images)
    with pytest.raises(ValueError, match=r"images has shape \(16, 16\)"):
        every_layer(ConvNet(), images[0, 0])


def stages_of(model, size):
    return [layer.name for layer in list_layers(model.eval(), torch.randn(1, 3, size, size))]


@pytest.mark.parametrize(
    ("name", "size", "stages"),
    [
        ("resnet50", 64, ["relu", "layer1", "layer2", "layer3", "layer4"]),
        ("vgg11", 64, [f"features.{place}" for place in (1, 4, 9, 14, 19)]),
        (
            "densenet121",
            64,
            ["features.relu0", *(f"features.denseblock{number}" for number in (1, 2, 3)), "features"],
        ),
        ("efficientnet_b0", 64, [*(f"features.{place}" for place in (1, 2, 3, 5)), "features"]),
        ("swin_t", 64, [*(f"features.{place}" for place in (1, 3, 5)), "permute"]),
        ("vit_b_32", 224, [f"encoder.layers.encoder_layer_{place}" for place in range(12)]),
    ],
)
def test_one_layer_of_each_stage_is_listed(name, size, stages):
    torchvision = pytest.importorskip("torchvision")
    assert stages_of(getattr(torchvision.models, name)(weights=None), size) == stages


class ReducedKeys(nn.Module):
    """A block whose attention reads maps of half the size."""

    def __init__(self):
        super().__init__()
        self.keys, self.conv = nn.Conv2d(4, 4, 2, 2), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, maps):
        return self.conv(maps) * self.keys(maps).mean((2, 3), keepdim=True)


def test_maps_of_another_size_inside_a_block_are_no_stage():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), ReducedKeys(), ReducedKeys())
    assert stages_of(model, 16) == ["2"]


def test_a_narrow_part_between_wide_ones_is_a_stage():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1), nn.Upsample(scale_factor=2))
    assert stages_of(model, 16) == ["0", "2", "3"]


def test_each_call_has_a_row_with_its_own_shape_also_among_the_stages():
    assert list_layers(TwoSizes(), torch.randn(1, 3, 16, 12)) == [
        LayerInfo("tower", "Conv2d", (1, 3, 16, 12), (16, 12)),
        LayerInfo("tower", "Conv2d", (1, 3, 8, 6), (8, 6), call=1),
    ]
