"""The layer found in known networks, its grid, and the heatmap there against the full graph of the network.

One table line per family. The layers were looked up in the networks, not printed by the code under test. Weights are
random; a head that starts at zero is filled.
"""

import math

import pytest
import torch
from support import naive
from support.tolerances import RECIPE_PARITY
from torch import nn
from torch.nn import functional as F

from gradcam_fast import explain

# Layouts of a layer's output: planes (B,C,h,w), channels last (B,h,w,C), and tokens (B,N,C) after so many others.
PLANES, LAST = "planes", "channels last"

TORCHVISION = {
    "alexnet": (96, "features.11", PLANES, 5),
    "vgg11_bn": (96, "features.27", PLANES, 6),
    "vgg16": (96, "features.29", PLANES, 6),
    "resnet18": (96, "layer4", PLANES, 3),
    "resnet50": (96, "layer4", PLANES, 3),
    "resnext50_32x4d": (96, "layer4", PLANES, 3),
    "wide_resnet50_2": (96, "layer4", PLANES, 3),
    "densenet121": (96, "features", PLANES, 3),
    "squeezenet1_1": (96, "classifier.2", PLANES, 5),
    "googlenet": (96, "inception5b", PLANES, 3),
    "inception_v3": (128, "Mixed_7c", PLANES, 2),
    "shufflenet_v2_x0_5": (96, "conv5", PLANES, 3),
    "mobilenet_v2": (96, "features", PLANES, 3),
    "mobilenet_v3_small": (96, "features", PLANES, 3),
    "mnasnet0_5": (96, "layers", PLANES, 3),
    "efficientnet_b0": (96, "features", PLANES, 3),
    "efficientnet_v2_s": (96, "features", PLANES, 3),
    "regnet_y_400mf": (96, "trunk_output", PLANES, 3),
    "convnext_tiny": (96, "features", PLANES, 3),
    "vit_b_32": (224, "encoder.layers.encoder_layer_11.ln_1", 1, 7),
    "swin_t": (96, "permute", PLANES, 3),
    "swin_v2_t": (96, "permute", PLANES, 3),
    "maxvit_t": (224, "blocks.3", PLANES, 7),
}

TIMM = {
    "resnet18d": (96, "layer4", PLANES, 3),
    "convnextv2_atto": (96, "stages", PLANES, 3),
    "tf_efficientnetv2_b0": (96, "bn2", PLANES, 3),
    "vit_tiny_patch16_224": (224, "blocks.11.norm1", 1, 14),
    "deit_tiny_distilled_patch16_224": (224, "blocks.11.norm1", 2, 14),
    "vit_small_patch14_reg4_dinov2": (112, "blocks.11.norm1", 5, 8),
    "vit_base_patch16_reg4_gap_256": (96, "blocks", 4, 6),
    "vit_small_patch16_dinov3": (96, "norm", 5, 6),
    "swin_tiny_patch4_window7_224": (224, "norm", LAST, 7),
    "maxvit_rmlp_pico_rw_256": (256, "norm", PLANES, 8),
    "mobilevit_xxs": (96, "final_conv", PLANES, 3),
    "edgenext_xx_small": (96, "stages", PLANES, 3),
    "pvt_v2_b0": (96, "stages", PLANES, 3),
    "poolformer_s12": (96, "stages", PLANES, 3),
    "mixer_s32_224": (224, "norm", 0, 7),
    "resmlp_12_224": (224, "norm", 0, 14),
    # Both layers of class attention read the trunk.
    "cait_xxs24_224": (224, "blocks", 0, 14),
    "xcit_nano_12_p16_224": (224, "cls_attn_blocks.1.norm1", 1, 14),
    "beit_base_patch16_224": (224, "blocks.11", 1, 14),
    # The last map that its three parallel scales are made of.
    "coat_tiny": (224, "serial_blocks2.1", 1, 28),
    "hiera_tiny_224": (224, "blocks.11", 0, 7),
}


@pytest.mark.parametrize("family", TORCHVISION)
def test_the_layer_found_in_torchvision_networks(family):
    torchvision = pytest.importorskip("torchvision")
    options = {"init_weights": True} if family in ("googlenet", "inception_v3") else {}
    assert_explained(getattr(torchvision.models, family)(weights=None, **options), *TORCHVISION[family])


@pytest.mark.parametrize("family", TIMM)
def test_the_layer_found_in_timm_networks(family):
    timm = pytest.importorskip("timm")
    side = TIMM[family][0]
    own_size = timm.get_pretrained_cfg(family).input_size[-1]
    options = {} if side == own_size or TIMM[family][2] in (PLANES, LAST) else {"img_size": side}
    assert_explained(timm.create_model(family, **options), *TIMM[family])


def test_two_trunks_of_a_timm_network_are_explained_together():
    timm = pytest.importorskip("timm")
    model, images = timm.create_model("crossvit_tiny_240").eval(), torch.randn(2, 3, 240, 240)
    explanation = explain(model, images, relu=False)
    layers = ("blocks.2.fusion.0.norm1", "blocks.2.fusion.1.norm1")
    assert explanation.layer == layers and explanation.valid.all()
    single = [explain(model, images, layer=layer, relu=False).heatmap for layer in layers]
    mean = torch.stack(single).double().mean(0)
    low, high = mean.amin((1, 2), keepdim=True), mean.amax((1, 2), keepdim=True)
    torch.testing.assert_close(explanation.heatmap.double(), (mean - low) / (high - low), rtol=0, atol=RECIPE_PARITY)


def small(**changes):
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    return sizes | {"image_size": 64, "patch_size": 8} | changes


STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
WINDOWS = {"image_size": 64, "embed_dim": 16, "depths": [1, 1, 2], "num_heads": [2, 2, 4], "window_size": 4}

# Name of the configuration: its options, layer, layout and side of the grid.
TRANSFORMERS = {
    "ViT": (small(), "vit.layers.2.layernorm_before", 1, 8),
    "DeiT": (small(), "deit.layers.2.layernorm_before", 2, 8),
    "Dinov2": (small(), "dinov2.layernorm", 1, 8),
    "Dinov2WithRegisters": (small(num_register_tokens=4), "dinov2_with_registers.layernorm", 5, 8),
    "Beit": (small(), "beit.layers.2", 1, 8),
    "Swin": (WINDOWS, "swin.layernorm", 0, 4),
    "Swinv2": (WINDOWS, "swinv2.layernorm", 0, 4),
    "ConvNext": (STAGES, "convnext.encoder", PLANES, 2),
    "ResNet": ({"embedding_size": 8, **STAGES}, "resnet.encoder", PLANES, 2),
    "Segformer": ({"num_attention_heads": [1, 1, 2, 2], **STAGES}, "segformer", PLANES, 2),
}


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_the_layer_found_in_hugging_face_networks(family):
    transformers = pytest.importorskip("transformers")
    options, layer, layout, side = TRANSFORMERS[family]
    config = getattr(transformers, f"{family}Config")(**options, num_labels=5)
    model = getattr(transformers, f"{family}ForImageClassification")(config)
    assert_explained(model, 64, layer, layout, side)


def assert_explained(model, side, layer, layout, grid):
    model.eval()
    fill_zero_weights(model)
    images = torch.randn(2, 3, side, side)
    explanation = explain(model, images, relu=False)
    assert explanation.layer == layer
    assert explanation.valid.all()
    assert torch.equal(explanation.heatmap, explain(model, images, layer=layer, relu=False).heatmap)
    activations, gradients = graph(model, layer, images)
    expected = heatmaps(planes(activations, layout, grid), planes(gradients, layout, grid), side)
    torch.testing.assert_close(explanation.heatmap.double(), expected, rtol=0, atol=RECIPE_PARITY)


def graph(model, layer, images):
    def score(output):
        return naive.highest(getattr(output, "logits", output))

    activations, gradients, _ = naive.full_graph(model, layer, images, score)
    return activations, gradients


def planes(maps, layout, grid):
    """(B,C,h,w) from what the layer returned."""
    if layout == PLANES:
        assert maps.shape[2:] == (grid, grid)
        return maps
    if layout == LAST:
        assert maps.shape[1:3] == (grid, grid)
        return maps.movedim(-1, 1)
    assert maps.shape[1] == layout + grid**2
    return maps[:, layout:].mT.unflatten(-1, (grid, grid))


def heatmaps(activations, gradients, side):
    activations, gradients = activations.double(), gradients.double()
    raw = (gradients.mean((2, 3), keepdim=True) * activations).sum(1, keepdim=True)
    raw = F.interpolate(raw, (side, side), mode="bilinear", align_corners=False)[:, 0]
    low, high = raw.amin((1, 2), keepdim=True), raw.amax((1, 2), keepdim=True)
    return (raw - low) / (high - low)


def fill_zero_weights(model):
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and not module.weight.any():
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.weight[0].numel()))
