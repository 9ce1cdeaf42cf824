"""Known networks with the layer that is found in each, and the heatmap there by the full graph of the network.

The layers of one network per family were looked up in the network. The other rows hold what the search found when they
were written, after a look at whether that is plausible: they show what changes, not what is right. Weights are random;
a head that starts at zero is filled.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from gradcam_fast import explain
from support import naive

# Layouts of a layer's output: planes (B,C,h,w), channels last (B,h,w,C), and tokens (B,N,C) after so many others.
PLANES, LAST = "planes", "channels last"


class Network(NamedTuple):
    """A network of the zoo.

    Attributes:
        library: where it comes from.
        name: its name there.
        shape: of one image.
        layer: the right one; several for a set of layers. None: the network is refused.
        layout: of that layer's output.
        grid: its sides; one number for a square.
        note: why the layer is right, where that is not plain; of a refused network, what its error says.
        slow: whether it is left out of the quick tests.
        make: makes the network.
        score: turns what it returns into one score per image; None explains the highest logit.
        inputs: what it takes beside the images, by name; makes them for two images.
        behind: how many tokens stand behind the patches.
        calibrated: whether its batch norms first see a batch: at their start values the maps are flat.
    """

    library: str
    name: str
    shape: tuple[int, ...]
    layer: str | tuple[str, ...] | None
    layout: str | int
    grid: int | tuple[int, ...]
    note: str
    slow: bool
    make: Callable[[], nn.Module]
    score: Callable[[Any], torch.Tensor] | None = None
    inputs: Callable[[], dict[str, torch.Tensor]] | None = None
    behind: int = 0
    calibrated: bool = False

    @property
    def title(self) -> str:
        return f"{self.library} {self.name}"


class WithInputs(nn.Module):
    """A network that takes images by keyword, with its other inputs fixed."""

    def __init__(self, model, inputs):
        super().__init__()
        self.model, self.inputs = model, inputs

    def forward(self, images):
        return self.model(pixel_values=images, **self.inputs)


def prepare(network):
    """(model in eval mode, two images, other inputs by name); random, the same each time."""
    torch.manual_seed(0)
    model = network.make().eval()
    fill_zero_weights(model)
    images = torch.randn(2, *network.shape)
    if network.calibrated:
        calibrate(model, images)
    return model, images, network.inputs() if network.inputs else {}


def explained(network, model, images, inputs, **choices):
    """The explanation that the library gives."""
    if network.score:
        choices["target"] = network.score
    return explain(model, {"pixel_values": images, **inputs} if inputs else images, relu=False, **choices)


def full_graph_heatmap(network, model, images, inputs, layers):
    """The heatmap (B,H,W) at these layers by ordinary backwards through the network, in float64 behind the layers."""
    score = network.score or (lambda output: naive.highest(getattr(output, "logits", output)))
    twin = WithInputs(model, inputs) if inputs else model
    size = tuple(side for axis, side in enumerate(network.shape) if axis != channel_axis(network))
    maps = []
    for layer in layers:
        activations, gradients, _ = naive.full_graph(twin, f"model.{layer}" if inputs else layer, images, score)
        if isinstance(network.layout, int) and len(layers) == 1:
            activations, gradients = as_grid(activations, network), as_grid(gradients, network)
        elif network.layout == LAST:
            activations, gradients = activations.movedim(-1, 1), gradients.movedim(-1, 1)
        assert activations.shape[2:] == sides(network)
        maps.append(heatmap(activations, gradients, size[::-1] if len(network.shape) == 2 else size))
    found = maps[0] if len(maps) == 1 else scaled(torch.stack(maps).mean(0))
    return found.mT if len(network.shape) == 2 else found  # spectrograms (T,F) are turned by the network


def channel_axis(network):
    """The axis of the three channels in an image or a clip; None for a spectrogram."""
    return network.shape.index(3) if len(network.shape) > 2 else None


def as_grid(tokens, network):
    """Tokens (B,N,C) as (B,C,h,w), the others in front and behind left out."""
    grid = sides(network)
    assert tokens.shape[1] == network.layout + math.prod(grid) + network.behind
    return tokens[:, network.layout : network.layout + math.prod(grid)].mT.unflatten(-1, grid)


def sides(network):
    return network.grid if isinstance(network.grid, tuple) else (network.grid, network.grid)


def heatmap(activations, gradients, size):
    activations, gradients = activations.double(), gradients.double()
    axes = tuple(range(2, activations.dim()))
    raw = (gradients.mean(axes, keepdim=True) * activations).sum(1, keepdim=True)
    mode = "bilinear" if len(axes) == 2 else "trilinear"
    return scaled(F.interpolate(raw, size, mode=mode, align_corners=False)[:, 0])


def scaled(maps):
    axes = tuple(range(1, maps.dim()))
    low, high = maps.amin(axes, keepdim=True), maps.amax(axes, keepdim=True)
    return (maps - low) / (high - low)


def fill_zero_weights(model):
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and not module.weight.any():
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.weight[0].numel()))


def calibrate(model, images):
    """Let batch norms see a batch, and let residual branches that start at zero count."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = 0.9
            if not module.weight.any():
                nn.init.ones_(module.weight)
    with torch.no_grad():
        model.train()(images)
    model.eval()


def in_words(layout):
    """A layout as the table of the documentation names it."""
    if isinstance(layout, int):
        return f"tokens after {layout}" if layout else "tokens"
    return layout


def torchvision(group, name, **options):
    def make():
        module = __import__(f"torchvision.models.{group}" if group else "torchvision.models", fromlist=["models"])
        backbone = {"weights_backbone": None} if group in ("detection", "segmentation") else {}
        return getattr(module, name)(weights=None, **backbone, **options)

    return make


def timm(name, size, layout):
    def make():
        import timm as library

        own_size = library.get_pretrained_cfg(name).input_size[-1]
        fixed = size == own_size or layout in (PLANES, LAST)
        return library.create_model(name, **({} if fixed else {"img_size": size}))

    return make


def transformers(model, config, **options):
    def make():
        import transformers as library

        return getattr(library, model)(getattr(library, config)(**options))

    return make


def class_in_the_mean(output):
    """The mean logit of class 1 of a segmentation."""
    logits = output.logits if hasattr(output, "logits") else output["out"]
    return logits[:, 1].mean((1, 2))


def first_query(output):
    return output.logits[:, 0, 1]


def mean_depth(output):
    return output.predicted_depth.mean((1, 2))


def first_text(output):
    return output.logits_per_image[:, 0]


def words():
    ids = torch.randint(2, 48, (2, 7))
    ids[:, -1] = 49
    return {"input_ids": ids}


def one_point():
    return {"input_points": torch.tensor([[[[20.0, 30.0]]], [[[40.0, 20.0]]]])}


def small(**changes):
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    return sizes | {"image_size": 64, "patch_size": 8} | changes


STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
WINDOWS = {"image_size": 64, "embed_dim": 16, "depths": [1, 1, 2], "num_heads": [2, 2, 4], "window_size": 4}
TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 50}
TEXT |= {"max_position_embeddings": 16, "eos_token_id": 49, "bos_token_id": 0, "pad_token_id": 1}

# Name: size, layer, layout, grid, and where it needs one: note.
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
    "cait_xxs24_224": (224, "blocks", 0, 14, "both layers of class attention read the trunk"),
    "xcit_nano_12_p16_224": (224, "cls_attn_blocks.1.norm1", 1, 14),
    "beit_base_patch16_224": (224, "blocks.11", 1, 14),
    "coat_tiny": (224, "serial_blocks2.1", 1, 28, "the last map that its three parallel scales are made of"),
    "pit_ti_224": (224, "transformers.2.blocks.3.norm1", 1, 7),
    "hiera_tiny_224": (224, "blocks.11", 0, 7),
}

# More of timm; one of each family.
TIMM_QUICK = {
    "efficientvit_b0": (96, "head.in_conv", PLANES, 3, "the head's convolution comes before its pooling"),
    "rexnet_100": (96, "features", PLANES, 3),
    "starnet_s1": (96, "norm", PLANES, 3),
    "ese_vovnet19b_dw": (96, "stages", PLANES, 3),
    "dpn48b": (96, "features", PLANES, 3),
    "iformer_t": (96, "stages", PLANES, 3),
    "lcnet_050": (96, "blocks", PLANES, 3),
    "tinynet_e": (96, "bn2", PLANES, 3),
    "mobilenetv3_small_050": (96, "blocks", PLANES, 3),
    "cpubone_nano": (96, "head.in_conv", PLANES, 3, "the head's convolution comes before its pooling"),
    "efficientnet_es": (96, "bn2", PLANES, 3),
    "mixnet_s": (96, "bn2", PLANES, 3),
    "fbnetc_100": (96, "bn2", PLANES, 3),
    "spnasnet_100": (96, "bn2", PLANES, 3),
}

TIMM_SLOW = {
    "halonet26t": (256, "stages", PLANES, 8),
    "bat_resnext26ts": (256, "stages", PLANES, 8),
    "gernet_s": (96, "final_conv", PLANES, 3),
    "repvgg_a0": (96, "stages", PLANES, 3),
    "convit_tiny": (224, "blocks.11.norm1", 1, 14),
    "convmixer_768_32": (96, "blocks", PLANES, 13),
    "cspresnet50": (96, "stages", PLANES, 3),
    "davit_tiny": (224, "stages", PLANES, 7),
    "eva02_tiny_patch14_224": (224, "blocks.11", 1, 16),
    "fastvit_t8": (256, "final_conv", PLANES, 8),
    "fasternet_t0": (96, "stages", PLANES, 3),
    "focalnet_tiny_srf": (224, "norm", PLANES, 7),
    "gcvit_xxtiny": (224, "stages", PLANES, 7),
    "ghostnet_100": (96, "blocks", PLANES, 3),
    "hardcorenas_a": (96, "blocks", PLANES, 3),
    "hgnet_tiny": (96, "stages", PLANES, 3),
    "hgnetv2_b0": (96, "stages", PLANES, 3),
    "hrnet_w18_small": (96, "final_layer", PLANES, 3, "where its four resolutions are joined"),
    "inception_next_atto": (96, "stages", PLANES, 3),
    "inception_v4": (128, "features", PLANES, 2),
    "mambaout_femto": (96, "stages", LAST, 3),
    "caformer_s18": (96, "stages", PLANES, 3),
    "mobilenetv4_conv_small": (96, "blocks", PLANES, 3),
    "mobilevitv2_050": (96, "stages", PLANES, 4),
    "mvitv2_tiny": (224, "norm", 0, 7),
    "nasnetalarge": (128, "act", PLANES, 4, "the ReLU behind the last cell"),
    "nest_tiny": (224, "norm", LAST, 14),
    "nextvit_small": (128, "norm", PLANES, 4),
    "dm_nfnet_f0": (96, "final_act", PLANES, 3, "the activation behind the last convolution"),
    "pnasnet5large": (128, "act", PLANES, 4, "the ReLU behind the last cell"),
    "rdnet_tiny": (96, "dense_stages", PLANES, 3),
    "repghostnet_050": (96, "blocks", PLANES, 3),
    "repvit_m0_9": (96, "stages", PLANES, 3),
    "res2net50_26w_4s": (96, "layer4", PLANES, 3),
    "resnest14d": (96, "layer4", PLANES, 3),
    "resnetv2_50": (96, "norm", PLANES, 3),
    "selecsls42b": (96, "head", PLANES, 2, "its head is convolutions; the classifier is another module"),
    "seresnet50": (96, "layer4", PLANES, 3),
    "sequencer2d_s": (224, "norm", LAST, 16),
    "shvit_s1": (96, "stages", PLANES, 2),
    "skresnet18": (96, "layer4", PLANES, 3),
    "swiftformer_xs": (224, "norm", PLANES, 7),
    "swinv2_tiny_window8_256": (256, "norm", LAST, 8),
    "swinv2_cr_tiny_ns_224": (224, "stages", PLANES, 7),
    "tresnet_m": (96, "body", PLANES, 3),
    "twins_pcpvt_small": (224, "norm", 0, 7),
    "twins_svt_small": (224, "norm", 0, 7),
    "visformer_tiny": (224, "norm", PLANES, 7),
    "vit_tiny_r_s16_p8_224": (224, "blocks.11.norm1", 1, 7),
    "vit_relpos_small_patch16_224": (224, "blocks.11", 0, 14),
    "vitamin_small_224": (224, "blocks", 0, 14),
    "volo_d1_224": (224, "norm", 1, 14, "patches have a score of their own beside the class token's"),
    "xception41": (128, "blocks", PLANES, 4),
    "legacy_xception": (128, "act4", PLANES, 4, "the ReLU behind the last convolution"),
    "dla34": (96, "level5", PLANES, 3),
    "coatnet_pico_rw_224": (224, "norm", PLANES, 7),
    "coat_lite_tiny": (224, "serial_blocks4.1.norm1", 1, 7),
    "gmlp_s16_224": (224, "norm", 0, 14),
    "gmixer_24_224": (224, "norm", 0, 14),
    "mobileone_s0": (96, "stages", PLANES, 3),
    "vit_pwee_patch16_reg1_gap_256": (256, "blocks", 1, 16),
    "botnet26t_256": (256, "stages", PLANES, 8),
    "lambda_resnet26t": (256, "stages", PLANES, 8),
    "flexivit_small": (240, "blocks.11.norm1", 1, 15),
    "vit_base_patch16_siglip_224": (224, "norm", 0, 14, "attention pooling reads all tokens"),
    "efficientvim_m1": (
        224,
        "stages.0.blocks.0",
        PLANES,
        14,
        "every stage has a score of its own; this is the last map that all are made of",
    ),
    "csatv2": (128, "stages", PLANES, 2),
    "lowformer_b0": (96, "in_conv", PLANES, 3, "a convolution behind the stages, before the pooling"),
    "lcnetv2_base": (96, "stages", PLANES, 3),
    "hieradet_small": (224, "blocks.15", LAST, 7),
    "deit3_small_patch16_224": (224, "blocks.11.norm1", 1, 14),
    "vit_dlittle_patch16_reg1_gap_256": (256, "blocks", 1, 16),
    "wide_resnet50_2": (96, "layer4", PLANES, 3),
    "senet154": (96, "layer4", PLANES, 3),
    "swin_s3_tiny_224": (224, "norm", LAST, 7),
    "regnetz_b16": (96, "final_conv", PLANES, 3),
    "nf_resnet26": (96, "final_act", PLANES, 3),
    "vit_medium_patch16_rope_reg1_gap_256": (256, "blocks.11", 1, 16),
    "hiera_small_abswin_256": (256, "blocks.15", 0, 8),
    "convformer_s18": (96, "stages", PLANES, 3),
    "resnet50_gn": (96, "layer4", PLANES, 3),
    "ecaresnet26t": (96, "layer4", PLANES, 3),
    "seresnext26d_32x4d": (96, "layer4", PLANES, 3),
    "gcresnet33ts": (96, "final_conv", PLANES, 3),
    "resnetaa50": (96, "layer4", PLANES, 3),
    "xception65": (128, "blocks", PLANES, 4),
    "pit_ti_distilled_224": (224, "transformers.2.blocks.3.norm1", 2, 7),
}

SEGMENTATION = {
    "fcn_resnet50": ("classifier.2", 12, "the ReLU before the last convolution"),
    "deeplabv3_mobilenet_v3_large": ("classifier.3", 6, "the ReLU before the last convolution"),
    "deeplabv3_resnet50": ("classifier.3", 12, "the ReLU before the last convolution"),
}

# Model: its configuration, options, layer, layout, side of the grid, and where it needs them: note, score, inputs.
TRANSFORMERS = {
    "ViT": (small(), "vit.layers.2.layernorm_before", 1, 8),
    "DeiT": (small(), "deit.layers.2.layernorm_before", 2, 8),
    "Dinov2": (small(), "dinov2.layernorm", 1, 8),
    "Dinov2WithRegisters": (small(num_register_tokens=4), "dinov2_with_registers.layernorm", 5, 8),
    "Beit": (small(), "beit.layers.2", 1, 8),
    "Swin": (WINDOWS, "swin.layernorm", 0, 4),
    "Swinv2": (WINDOWS, "swinv2.layernorm", 0, 4),
    "ConvNext": (STAGES, "convnext.encoder", PLANES, 2),
    "ConvNextV2": (STAGES, "convnextv2.encoder", PLANES, 2),
    "ResNet": ({"embedding_size": 8, **STAGES}, "resnet.encoder", PLANES, 2),
    "RegNet": ({"embedding_size": 8, "groups_width": 8, **STAGES}, "regnet.encoder", PLANES, 2),
    "Segformer": ({"num_attention_heads": [1, 1, 2, 2], **STAGES}, "segformer", PLANES, 2),
    "PoolFormer": (STAGES, "poolformer", PLANES, 2),
    "MobileNetV2": ({"depth_multiplier": 0.35, "image_size": 64}, "mobilenet_v2.conv_1x1", PLANES, 2),
    "PvtV2": ({"num_attention_heads": [1, 1, 2, 2], "image_size": 64, **STAGES}, "pvt_v2", PLANES, 2),
    "Pvt": (
        {"num_attention_heads": [1, 1, 2, 2], "image_size": 64, **STAGES}, "pvt.encoder.block.3.0.layer_norm_1", 1, 2,
    ),
    "IJepa": (small(), "ijepa", 0, 8),
    "ViTMSN": (small(), "vit.layers.2.layernorm_before", 1, 8),
    "CLIP": (
        {"vision_config": small(), "text_config": TEXT}, "vision_model.encoder", 1, 8,
        "the mean of the patches is classified, without the norm",
    ),
    "Siglip": ({"vision_config": small(), "text_config": TEXT}, "vision_model.post_layernorm", 0, 8),
}  # fmt: skip

SEVERAL_INPUTS = {
    "CLIPModel": (
        {"vision_config": small(), "text_config": TEXT}, "vision_model.encoder.layers.2.layer_norm1", 1, 8,
        first_text, words,
    ),
    "SiglipModel": (
        {"vision_config": small(), "text_config": TEXT}, "vision_model.post_layernorm", 0, 8, first_text, words,
    ),
}  # fmt: skip

VISION_TASKS = {
    "SegformerForSemanticSegmentation": (
        {"num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16, **STAGES},
        "decode_head.activation", PLANES, 16,
        "the ReLU before the last convolution", class_in_the_mean,
    ),
    "YolosForObjectDetection": (
        small(image_size=[64, 64], num_detection_tokens=10), "vit.encoder.layer.2.layernorm_before", 1, 8,
        "ten detection tokens stand behind the patches", first_query,
    ),
    "GLPNForDepthEstimation": (
        {"num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16, **STAGES}, "head.head.1", PLANES, 64,
        "the ReLU before the last convolution", mean_depth,
    ),
    "CLIPVisionModelWithProjection": (
        small(projection_dim=16), "vision_model.encoder.layers.2.layer_norm1", 1, 8,
        "", lambda output: output.image_embeds[:, 0],
    ),
    "BlipVisionModel": (
        small(), "encoder.layers.2.layer_norm1", 1, 8, "", lambda output: output.pooler_output[:, 0],
    ),
    "Dinov2Model": (small(), "encoder.layer.2.norm1", 1, 8, "", lambda output: output.pooler_output[:, 0]),
}  # fmt: skip


def _rows():
    for name, row in TORCHVISION.items():
        side, layer, layout, grid, note = (*row, "")[:5]
        options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        yield Network(
            "torchvision", name, (3, side, side), layer, layout, grid, note, False, torchvision("", name, **options)
        )
    for name, (layer, grid, note) in SEGMENTATION.items():
        yield Network(
            "torchvision", name, (3, 96, 96), layer, PLANES, grid, note, True, torchvision("segmentation", name),
            class_in_the_mean,
        )  # fmt: skip
    for rows, slow in ((TIMM, False), (TIMM_QUICK, False), (TIMM_SLOW, True)):
        for name, row in rows.items():
            side, layer, layout, grid, note = (*row, "")[:5]
            yield Network("timm", name, (3, side, side), layer, layout, grid, note, slow, timm(name, side, layout))
    for name, row in TRANSFORMERS.items():
        options, layer, layout, grid, note = (*row, "")[:5]
        make = transformers(f"{name}ForImageClassification", f"{name}Config", **options, num_labels=5)
        yield Network("transformers", name, (3, 64, 64), layer, layout, grid, note, False, make)
    for name, (options, layer, layout, grid, note, score) in VISION_TASKS.items():
        config = name.split("For")[0].split("ModelWith")[0].removesuffix("Model") + "Config"
        yield Network(
            "transformers", name, (3, 64, 64), layer, layout, grid, note, False, transformers(name, config, **options),
            score, behind=options.get("num_detection_tokens", 0),
        )  # fmt: skip
    for name, (options, layer, layout, grid, score, inputs) in SEVERAL_INPUTS.items():
        config = name.removesuffix("Model") + "Config"
        yield Network(
            "transformers", name, (3, 64, 64), layer, layout, grid, "image-text score", False,
            transformers(name, config, **options), score, inputs,
        )  # fmt: skip


NETWORKS = tuple(_rows())
