"""Finding the layer without being told: on models that set traps, and when it must look again.

The families of networks are in test_zoo.py.

Knows nothing of the maps' numbers beyond that they are those of the layer named.
"""

import pytest
import torch
from torch import nn

from gradcam_fast import explain

torchvision = pytest.importorskip("torchvision")


def test_efficientnets_features_are_what_its_last_block_returns():
    model = torchvision.models.efficientnet_b0(weights=None).eval()
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(explain(model, images).heatmap, explain(model, images, layer="features.8").heatmap)


def test_a_head_of_zeros_does_not_hide_a_transformers_layer():
    model = torchvision.models.vit_b_32(weights=None).eval()
    assert not model.heads.head.weight.any()
    with pytest.warns(UserWarning, match="zero everywhere"):
        found = explain(model, torch.randn(1, 3, 224, 224))
    assert found.layer == "encoder.layers.encoder_layer_11.ln_1" and not found.valid.any()


class OneReluForAll(nn.Module):
    """conv relu conv relu pool fc relu fc, with the very same ReLU each time."""

    def __init__(self, head):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        self.relu, self.head = nn.ReLU(), head

    def forward(self, images):
        maps = self.relu(self.conv2(self.relu(self.conv1(images))))
        return self.head[1](self.relu(self.head[0](maps.mean((-2, -1), keepdim=True).flatten(1))))


def test_a_module_whose_last_call_has_no_positions_is_passed_over():
    model = OneReluForAll(nn.ModuleList([nn.Linear(5, 6), nn.Linear(6, 2)]))
    found = explain(model, torch.randn(2, 3, 12, 12), relu=False)
    assert found.layer == "conv2" and found.valid.all()


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.a, self.b = (nn.Conv2d(c, 4, 3) for c in (3, 4, 4))

    def forward(self, images):
        trunk = self.trunk(images)
        return {name: getattr(self, name)(trunk).mean((-2, -1)) for name in ("a", "b")}


def test_another_score_finds_another_layer():
    model, images = TwoHeads(), torch.randn(2, 3, 12, 12)
    for name in ("a", "b", "a"):
        found = explain(model, images, output=lambda out, name=name: out[name], relu=False)
        assert found.layer == name and found.valid.all()


class ZeroHead(nn.Module):
    """A head still at zero, beside a convolution that nothing depends on."""

    def __init__(self):
        super().__init__()
        self.conv, self.unused, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2)
        nn.init.zeros_(self.head.weight)

    def forward(self, images):
        maps = self.conv(images)
        self.unused(maps)
        return self.head(maps.mean((-2, -1)))


def test_a_head_of_zeros_is_explained_with_a_warning_and_nothing_is_learnt_from_it():
    model, images = ZeroHead(), torch.randn(2, 3, 12, 12)
    with pytest.warns(UserWarning, match="layer 'conv' is zero everywhere"):
        found = explain(model, images)
    assert found.layer == "conv" and not found.valid.any()
    nn.init.normal_(model.head.weight)
    found = explain(model, images, relu=False)
    assert found.layer == "conv" and found.valid.all()


def test_an_empty_batch_teaches_nothing():
    model, images = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        torch.randn(2, 3, 9, 9),
    )
    assert explain(model, images[:0]).heatmap.shape == (0, 9, 9)
    found = explain(model, images)
    assert found.layer == "1" and found.valid.all()


def test_a_layer_of_another_batch_than_the_images_is_not_chosen_and_not_accepted():
    class Folding(nn.Module):
        """Two crops per image, folded into the batch."""

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


def test_a_dict_with_any_keys_may_pass_through_the_model():
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

    found = explain(Pyramid(), torch.randn(2, 3, 9, 9), relu=False)
    assert found.layer == "levels" and found.valid.all()


def test_the_layer_is_looked_for_once_per_image_size():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    for images, runs in ((torch.randn(2, 3, 9, 9), 2), (torch.randn(3, 3, 9, 9), 1), (torch.randn(1, 3, 8, 9), 2)):
        calls.clear()
        explain(model, images)
        assert len(calls) == runs


def test_a_detached_score_is_called_detached():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(RuntimeError, match="it was detached"):
        explain(model, torch.randn(2, 3, 9, 9), target=lambda out: out.detach()[:, 0])


def test_a_layer_of_one_position_is_refused_by_name():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match=r"layer '2' returns shape \(2, 4, 1, 1\).*more than one position"):
        explain(model, torch.randn(2, 3, 9, 9), layer="2")


def test_a_segmentation_is_explained_where_the_mask_makes_a_difference():
    model = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=5).eval()
    images = torch.randn(1, 3, 64, 64)

    def of_columns(some):
        return explain(model, images, target=lambda out: out["out"][:, 2, :, some].mean((-2, -1)), relu=False)

    left, right = of_columns(slice(0, 16)), of_columns(slice(48, 64))
    assert left.layer == right.layer == "classifier.1"
    assert (left.heatmap - right.heatmap).abs().max() > 0.05


def test_a_layer_found_for_another_score_is_looked_for_again_when_its_gradient_vanishes():
    class Levels(nn.Module):
        """Two maps, each with a score of its own, of which a callable picks the higher or the lower."""

        def __init__(self):
            super().__init__()
            self.fine, self.coarse = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, 2)

        def forward(self, images):
            return torch.stack([self.fine(images).mean((1, 2, 3)), self.coarse(images).mean((1, 2, 3))], 1)

    model, images = Levels(), torch.randn(2, 3, 12, 12)
    for column, name in ((1, "coarse"), (0, "fine"), (1, "coarse")):
        found = explain(model, images, target=column, relu=False)
        assert found.layer == name and found.valid.all()


class Deep(nn.Module):
    """Fifty convolutions, and then fifty more, of which `depends` says how many the score depends on."""

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


def test_a_graph_is_kept_behind_the_last_maps_only():
    model = Deep(depends=98)
    assert explain(model, torch.randn(1, 3, 8, 8), relu=False).layer == "blocks.97"
    counting, searching, explaining = model.graph
    assert not any(counting) and sum(searching) == 32 and sum(explaining) == 3


def test_and_behind_all_of_them_where_the_score_depends_on_none_of_the_last():
    model = Deep(depends=20)
    assert explain(model, torch.randn(1, 3, 8, 8), relu=False).layer == "blocks.19"
    assert [sum(each) for each in model.graph] == [0, 32, 100, 81]


class PooledEarly(nn.Module):
    """A pooled map that containers hand on, returned at the end of everything although it was made at its start."""

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
def test_a_pooled_map_does_not_count_wherever_the_graph_begins(idle):
    model = PooledEarly(idle)
    assert explain(model, torch.randn(1, 3, 10, 10), relu=False).layer == "conv"
