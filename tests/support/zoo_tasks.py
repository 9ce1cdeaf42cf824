"""More networks of the zoo: detectors, videos, flow, depth, speech, several inputs, and those that are refused."""

import torch
from torch import nn

from support import yolo
from support.zoo import (
    LAST,
    PLANES,
    STAGES,
    TEXT,
    WINDOWS,
    Network,
    mean_depth,
    one_point,
    small,
    timm,
    torchvision,
)
from support.zoo import transformers as hugging_face

# A detector of few boxes, so that it is quick.
FEW_BOXES = {"min_size": 96, "max_size": 96, "num_classes": 4}
ROI_HEADS = FEW_BOXES | {"box_score_thresh": 0.0, "box_detections_per_img": 3, "rpn_post_nms_top_n_test": 20}
RESNET = {"embedding_size": 8, **STAGES}
NO_TIMM = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
DECODER = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
DECODER |= {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
CLIP_OF_VIDEO = {"num_frames": 4, "image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2}
CLIP_OF_VIDEO |= {"num_attention_heads": 4, "intermediate_size": 48, "num_labels": 5}
MAE_DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
MAE_DECODER |= {"decoder_intermediate_size": 24}
BLIP_TEXT = TEXT | {"encoder_hidden_size": 32, "projection_dim": 16, "sep_token_id": 2, "eos_token_id": 2}


def best_box(output):
    return torch.stack([of_image["scores"][0] for of_image in output])


def class_in_the_middle(output):
    logits = output["out"] if isinstance(output, dict) and "out" in output else output.logits
    return logits[:, 1].mean((1, 2))


def queried_class(output):
    return getattr(output, "class_queries_logits", getattr(output, "logits", None))[:, 0, 1]


def queried_mask(output):
    return output.masks_queries_logits[:, 0].mean((1, 2))


def mean_flow(output):
    return output[-1][:, 0].mean((1, 2))


def detector(name, **options):
    return torchvision("detection", name, **options)


def mvit():
    """torchvision's MViT with three blocks in two stages."""
    from torchvision.models.video.mvit import MSBlockConfig, MViT

    def block(heads, before, after, stride):
        return MSBlockConfig(heads, before, after, [3, 3, 3], [3, 3, 3], [1, stride, stride], [1, 2, 2])

    return MViT(
        (64, 64), 8, [block(1, 16, 16, 1), block(2, 16, 32, 2), block(2, 32, 32, 1)], residual_pool=True,
        residual_with_cls_embed=False, rel_pos_embed=True, proj_after_attn=True, num_classes=5,
    )  # fmt: skip


def detr(model, config, **options):
    def make():
        import transformers

        stages = options.pop("stages", ["stage4"])
        backbone = transformers.ResNetConfig(**RESNET, out_features=stages)
        return getattr(transformers, model)(
            getattr(transformers, config)(**NO_TIMM, backbone_config=backbone, d_model=32, num_queries=9, **DECODER)
        )

    return make


def mask_former(model, config, **options):
    def make():
        import transformers

        backbone = WINDOWS | {"depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]}
        stages = [f"stage{number}" for number in (1, 2, 3, 4)]
        more = {name: value() if callable(value) else value for name, value in options.items()}
        return getattr(transformers, model)(
            getattr(transformers, config)(
                backbone_config=transformers.SwinConfig(**backbone, out_features=stages), mask_feature_size=32, **more
            )
        )

    return make


def detr_decoder():
    import transformers

    return transformers.DetrConfig(d_model=32, num_queries=10, **DECODER)


def sam():
    import transformers

    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_dim": 48, "image_size": 64}
    vision |= {"patch_size": 8, "output_channels": 16, "window_size": 4, "global_attn_indexes": [1], "num_pos_feats": 8}
    decoder = {"hidden_size": 16, "mlp_dim": 24, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    prompts = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
    return transformers.SamModel(
        transformers.SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    )


def on_backbone(model, config, backbone, **options):
    """A model of transformers on a backbone's configuration: its name and options."""

    def make():
        import transformers

        name, its_options = backbone
        return getattr(transformers, model)(
            getattr(transformers, config)(backbone_config=getattr(transformers, name)(**its_options), **options)
        )

    return make


def pairs_of_words():
    return {"input_ids": torch.randint(2, 48, (2, 7))}


class Flow(nn.Module):
    """The flow from an image to the same image moved by two pixels."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images, images.roll(2, -1))


def _rows():
    def row(library, name, shape, layer, layout, grid, make, score=None, *, note="", slow=False, **more):
        return Network(library, name, shape, layer, layout, grid, note, slow, make, score, **more)

    photo, small_photo = (3, 96, 96), (3, 64, 64)
    level = "the level of the pyramid that the best box is on"
    for name, options, layer, grid, note in (
        ("fasterrcnn_mobilenet_v3_large_320_fpn", ROI_HEADS, "backbone.fpn.layer_blocks.0", 3, level),
        ("fasterrcnn_resnet50_fpn", ROI_HEADS, "backbone.fpn.layer_blocks.0", 24, level),
        ("maskrcnn_resnet50_fpn", ROI_HEADS, "backbone.fpn.layer_blocks.0", 24, level),
        (
            "keypointrcnn_resnet50_fpn", ROI_HEADS | {"num_classes": 2, "num_keypoints": 2},
            "backbone.fpn.layer_blocks.0", 24, level,
        ),
        ("retinanet_resnet50_fpn", FEW_BOXES | {"score_thresh": 0.0}, "backbone.fpn.layer_blocks.0", 12, level),
        ("fcos_resnet50_fpn", FEW_BOXES | {"score_thresh": 0.0}, "backbone.fpn.layer_blocks.0", 12, level),
        ("ssd300_vgg16", {"num_classes": 4, "score_thresh": 0.0}, "backbone.extra.0", 19, level),
        (
            "ssdlite320_mobilenet_v3_large", {"num_classes": 4, "score_thresh": 0.0},
            "head.classification_head.module_list.0.0", 20, "the head's last convolution before the class scores",
        ),
    ):  # fmt: skip
        yield row(
            "torchvision", name, photo, layer, PLANES, grid, detector(name, **options), best_box, note=note, slow=True
        )
    yield row(
        "torchvision", "lraspp_mobilenet_v3_large", photo, "backbone.4", PLANES, 12,
        torchvision("segmentation", "lraspp_mobilenet_v3_large"), class_in_the_middle, slow=True,
        note="the last map that its two heads are made of",
    )  # fmt: skip
    for name in ("r3d_18", "mc3_18", "r2plus1d_18"):
        grid = (8, 4, 4) if name == "mc3_18" else (1, 4, 4)
        yield row("torchvision", name, (3, 8, 64, 64), "layer4", PLANES, grid, torchvision("video", name), slow=True)
    yield row(
        "torchvision", "s3d", (3, 14, 224, 224), "features", PLANES, (2, 7, 7), torchvision("video", "s3d"), slow=True
    )
    yield row(
        "torchvision", "swin3d_t", (3, 8, 64, 64), "norm", LAST, (4, 2, 2), torchvision("video", "swin3d_t"), slow=True
    )
    yield row(
        "torchvision", "mvit (three blocks)", (3, 8, 64, 64), "blocks.2.norm1", 1, (4, 8, 8), mvit,
        note="as in a ViT; the full mvit_v1_b and mvit_v2_s give blocks.15.norm1",
    )  # fmt: skip
    yield row(
        "torchvision", "raft_small", (3, 128, 128), "model.update_block.flow_head.relu", PLANES, 16,
        lambda: Flow(torchvision("optical_flow", "raft_small")()), mean_flow, slow=True,
        note="the last step's features before the flow",
    )  # fmt: skip
    for kind, layer in (("v8", "classes.1.1"), ("v5", "laterals.1")):
        yield row(
            "written out", f"YOLO{kind}", small_photo, layer, PLANES, 4, lambda kind=kind: yolo.Yolo(kind),
            yolo.class_on_middle_level, note="before the predictions of the box's level",
        )  # fmt: skip
    norm = "the class token reads all patches there"
    for name, size, layer, layout, grid, note, calibrated in (
        ("efficientformer_l1", 224, "norm", 0, 7, "", False),
        ("efficientformerv2_s0", 224, "norm", PLANES, 7, "", False),
        ("efficientvit_m0", 224, "stages", PLANES, 4, "", False),
        ("tiny_vit_5m_224", 224, "stages", PLANES, 7, "", False),
        ("regnetx_002", 96, "s4", PLANES, 3, "", False),
        ("cspnext_tiny", 96, "stages", PLANES, 3, "", False),
        ("legacy_seresnet18", 96, "layer4", PLANES, 3, "", False),
    ):
        yield row(
            "timm", name, (3, size, size), layer, layout, grid, timm(name, size, PLANES), note=note,
            calibrated=calibrated,
        )  # fmt: skip
    for name, size, layer, layout, grid, note, calibrated in (
        ("tnt_s_legacy_patch16_224", 224, "blocks.11.norm_out", 1, 14, norm, False),
        ("inception_resnet_v2", 128, "conv2d_7b", PLANES, 2, "", True),
        ("samvit_base_patch16_224", 224, "neck", PLANES, 14, "", False),
        ("vgg11", 96, "features.19", PLANES, 6, "", False),
        ("densenet121", 96, "features", PLANES, 3, "", False),
        ("inception_v3", 128, "Mixed_7c", PLANES, 2, "", False),
    ):
        yield row(
            "timm", name, (3, size, size), layer, layout, grid, timm(name, size, PLANES), note=note, slow=True,
            calibrated=calibrated,
        )  # fmt: skip
    queries = "what the queries read; as many queries as patches"
    yield row(
        "transformers", "DetrForObjectDetection", photo, "model.encoder", 0, 3,
        detr("DetrForObjectDetection", "DetrConfig"), queried_class, note=queries,
    )  # fmt: skip
    yield row(
        "transformers", "ConditionalDetrForObjectDetection", photo, "model.encoder", 0, 3,
        detr("ConditionalDetrForObjectDetection", "ConditionalDetrConfig"), queried_class, note=queries,
    )  # fmt: skip
    yield row(
        "transformers", "TableTransformerForObjectDetection", photo, "model.encoder", 0, 3,
        detr("TableTransformerForObjectDetection", "TableTransformerConfig"), queried_class, note=queries,
    )  # fmt: skip
    yield row(
        "transformers", "MaskFormerForInstanceSegmentation", small_photo, "model.transformer_module.input_projection",
        PLANES, 2,
        mask_former(
            "MaskFormerForInstanceSegmentation", "MaskFormerConfig", fpn_feature_size=32, decoder_config=detr_decoder
        ),
        queried_class, note="what the queries read",
    )  # fmt: skip
    yield row(
        "transformers", "Mask2FormerForUniversalSegmentation", small_photo,
        "model.transformer_module.input_projections.0", PLANES, 2,
        mask_former(
            "Mask2FormerForUniversalSegmentation", "Mask2FormerConfig", feature_size=32, hidden_dim=32,
            encoder_feedforward_dim=24, encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=24,
            num_queries=10,
        ),
        queried_class, note="the level that the queries of one decoder layer read",
    )  # fmt: skip
    yield row(
        "transformers", "SamModel", small_photo, "vision_encoder", PLANES, 8, sam,
        lambda output: output.iou_scores[:, 0, 0], inputs=one_point,
        note="the image embeddings; the tokens behind are those of the mask and the points",
    )  # fmt: skip
    yield row(
        "transformers", "VideoMAE", (4, 3, 32, 32), "videomae", 0, (2, 4, 4),
        hugging_face("VideoMAEForVideoClassification", "VideoMAEConfig", **CLIP_OF_VIDEO, tubelet_size=2),
    )  # fmt: skip
    yield row(
        "transformers", "Vivit", (4, 3, 32, 32), "vivit.layers.1.layernorm_before", 1, (2, 4, 4),
        hugging_face("VivitForVideoClassification", "VivitConfig", **CLIP_OF_VIDEO, tubelet_size=[2, 8, 8]),
    )  # fmt: skip
    yield row(
        "transformers", "AST", (128, 64), "audio_spectrogram_transformer.layers.1.layernorm_before", 2, (5, 12),
        hugging_face(
            "ASTForAudioClassification", "ASTConfig", hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=48, max_length=128, num_mel_bins=64, num_labels=5,
        ),
        note="spectrograms (B,T,F), patches of 16 every 10",
    )  # fmt: skip
    yield row(
        "transformers", "DPTForDepthEstimation", small_photo, "head.head.3", PLANES, 128,
        hugging_face(
            "DPTForDepthEstimation", "DPTConfig", **small(num_hidden_layers=4), backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8] * 4, fusion_hidden_size=16,
        ),
        mean_depth, note="the last ReLU",
    )  # fmt: skip
    dinov2 = small(num_hidden_layers=4, image_size=56, patch_size=14)
    dinov2 |= {"out_features": ["stage1", "stage2", "stage3", "stage4"], "reshape_hidden_states": False}
    yield row(
        "transformers", "DepthAnythingForDepthEstimation", (3, 56, 56), "head.activation1", PLANES, 56,
        on_backbone(
            "DepthAnythingForDepthEstimation", "DepthAnythingConfig", ("Dinov2Config", dinov2),
            reassemble_hidden_size=32, patch_size=14, neck_hidden_sizes=[8] * 4,
            fusion_hidden_size=16, head_hidden_size=8,
        ),
        mean_depth, note="the last ReLU",
    )  # fmt: skip
    yield row(
        "transformers", "BlipForImageTextRetrieval", small_photo, "vision_model.encoder", 1, 8,
        hugging_face(
            "BlipForImageTextRetrieval", "BlipConfig", text_config=BLIP_TEXT, vision_config=small(),
            image_text_hidden_size=16, projection_dim=16,
        ),
        lambda output: output.itm_score[:, 1], inputs=pairs_of_words, note="what the words read, up to a norm",
    )  # fmt: skip
    yield row(
        "transformers", "AltCLIPModel", small_photo, "vision_model.encoder.layers.2.layer_norm1", 1, 8,
        hugging_face("AltCLIPModel", "AltCLIPConfig", text_config=TEXT | {"project_dim": 32}, vision_config=small()),
        lambda output: output.logits_per_image[:, 0], inputs=pairs_of_words, note="image-text score",
    )  # fmt: skip
    yield row(
        "transformers", "FlavaModel", small_photo, "multimodal_model.encoder.layer.1.layernorm_before", 2, 8,
        hugging_face(
            "FlavaModel", "FlavaConfig", image_config=small(), text_config=TEXT, hidden_size=32,
            multimodal_config={name: TEXT[name] for name in tuple(TEXT)[:4]},
        ),
        lambda output: output.multimodal_output.last_hidden_state[:, 0, 1], inputs=pairs_of_words, behind=7,
        note="seven words stand behind the patches",
    )  # fmt: skip
    yield row(
        "transformers", "OwlViTForObjectDetection", small_photo, "layer_norm", 0, 8,
        hugging_face(
            "OwlViTForObjectDetection", "OwlViTConfig", vision_config=small(), text_config=TEXT, projection_dim=32
        ),
        lambda output: output.logits[:, 3, 0], inputs=pairs_of_words,
    )  # fmt: skip
    yield row(
        "transformers", "UperNetForSemanticSegmentation", small_photo, "decode_head.fpn_bottleneck", PLANES,
        16,
        on_backbone(
            "UperNetForSemanticSegmentation", "UperNetConfig",
            ("ConvNextConfig", STAGES | {"out_features": ["stage1", "stage2", "stage3", "stage4"]}), hidden_size=16,
            auxiliary_in_channels=24, auxiliary_channels=8, num_labels=5,
        ),
        class_in_the_middle, note="the block that fuses the pyramid",
    )  # fmt: skip
    picked = "an index has picked or shuffled"
    yield row(
        "transformers", "ViTMAEForPreTraining", small_photo, None, 0, 0,
        hugging_face("ViTMAEForPreTraining", "ViTMAEConfig", **small(), **MAE_DECODER),
        lambda output: -output.logits.square().mean((1, 2)), note=picked,
    )  # fmt: skip
    yield row(
        "transformers", "ViltForQuestionAnswering", small_photo, None, 0, 0,
        hugging_face("ViltForQuestionAnswering", "ViltConfig", **TEXT, image_size=64, patch_size=16, num_labels=5),
        inputs=pairs_of_words, note=picked,
    )  # fmt: skip


NETWORKS = tuple(_rows())
