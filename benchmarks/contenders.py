"""The networks that are explained, and the contenders: the libraries that explain them, used as they document it.

A contender is a function from images to heatmaps: it predicts, and returns for each image the heatmap of the predicted
class, in [0,1] and at the images' size, (B,H,W).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradcam_fast

# By name in torchvision: the title in tables, and the layer that gradcam_fast finds, which all contenders explain.
NETWORKS = {
    "resnet18": ("ResNet-18", "layer4"),
    "resnet50": ("ResNet-50", "layer4"),
    "vgg16": ("VGG16", "features.29"),
    "mobilenet_v3_large": ("MobileNetV3-L", "features"),
    "efficientnet_b0": ("EfficientNet-B0", "features"),
    "convnext_tiny": ("ConvNeXt-T", "features"),
    "vit_b_16": ("ViT-B/16", "encoder.layers.encoder_layer_11.ln_1"),
}
VIT_TOKEN_GRID = (14, 14)  # of ViT-B/16 at 224x224

Contender = Callable[[Tensor], Tensor]


@functools.lru_cache(maxsize=1)
def build(name: str) -> nn.Module:
    """A network of torchvision in eval mode, with random weights that give gradients of a usual size.

    Batch-norm has seen one batch, because otherwise activations vanish in a deep network. The last linear layer, which
    ViT initialises with zeros, is large enough for gradients well above the absolute epsilons of some contenders.
    """
    models = importlib.import_module("torchvision.models")
    torch.manual_seed(0)
    model: nn.Module = getattr(models, name)(weights=None)
    *_, head = (module for module in model.modules() if isinstance(module, nn.Linear))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        head.weight.normal_()
        if norms:
            model.train()(torch.randn(2, 3, 224, 224))
    return model.eval()


def copy_sharing_weights(model: nn.Module) -> nn.Module:
    """A copy for one contender: some leave hooks in the model, which would slow down the others and the prediction."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def eager_cam(activations: Tensor, gradients: Tensor, size: tuple[int, int]) -> Tensor:
    """What the op computes, in the lines of plain PyTorch that it replaces: (B,1,H,W)."""
    maps = (gradients.mean((2, 3), keepdim=True) * activations).sum(1, keepdim=True).relu()
    maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    lowest, highest = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - lowest) / (highest - lowest)


def predict(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The prediction alone, to which explanations are compared."""

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(images)

    return run


def ours(model: nn.Module, layer: str) -> Contender:
    explainer = gradcam_fast.Explainer(model)
    return lambda images: explainer(images).heatmap


def recipe(model: nn.Module, layer: str) -> Contender:
    """The fastest of the four published recipes, the third: one image at a time, with a full backward."""
    if _is_transformer(model):
        raise NotImplementedError("the recipe cannot read tokens")
    module = model.get_submodule(layer)

    def explain(image: Tensor) -> Tensor:
        captured: dict[str, Tensor] = {}

        def forward_hook(module: nn.Module, args: object, output: Tensor) -> None:
            captured["activations"] = output
            output.register_hook(lambda gradient: captured.update(gradients=gradient))

        handle = module.register_forward_hook(forward_hook)
        output = model(image)
        handle.remove()
        one_hot = torch.zeros_like(output)
        one_hot[0][output.argmax(1).item()] = 1
        output.backward(gradient=one_hot)
        model.zero_grad()
        weights = F.adaptive_avg_pool2d(captured["gradients"], 1)
        heatmap = torch.relu((weights * captured["activations"]).sum(1, keepdim=True)).detach()
        return _scaled(_upsampled(heatmap, image))

    return lambda images: torch.cat([explain(images[i : i + 1]) for i in range(len(images))])


def pytorch_grad_cam(model: nn.Module, layer: str) -> Contender:
    from pytorch_grad_cam import GradCAM

    reshape = (lambda tokens: tokens[:, 1:].mT.unflatten(2, VIT_TOKEN_GRID)) if _is_transformer(model) else None
    cam = GradCAM(model, [model.get_submodule(layer)], reshape_transform=reshape)
    return lambda images: torch.from_numpy(cam(images, targets=None))


def torchcam(model: nn.Module, layer: str) -> Contender:
    from torchcam.methods import GradCAM

    if _is_transformer(model):
        raise NotImplementedError("torchcam cannot read tokens")
    cam = GradCAM(model, layer)

    def explain(images: Tensor) -> Tensor:
        scores = model(images)
        (maps,) = cam(scores.argmax(1).tolist(), scores)
        return _scaled(_upsampled(maps.unsqueeze(1), images))

    return explain


def captum(model: nn.Module, layer: str) -> Contender:
    """captum needs the class as an argument, so a prediction without a graph comes first."""
    from captum.attr import LayerAttribution, LayerGradCam

    if _is_transformer(model):
        raise NotImplementedError("captum's Grad-CAM cannot read tokens")
    attribution = LayerGradCam(model, model.get_submodule(layer))
    prediction = predict(model)

    def explain(images: Tensor) -> Tensor:
        classes = prediction(images).argmax(1)
        maps = attribution.attribute(images, classes, relu_attributions=True)
        return _scaled(LayerAttribution.interpolate(maps, images.shape[2:], "bilinear").detach())

    return explain


CONTENDERS: dict[str, Callable[[nn.Module, str], Contender]] = {
    "explainer": ours,
    "recipe": recipe,
    "torchcam": torchcam,
    "captum": captum,
    "pytorch-grad-cam": pytorch_grad_cam,
}


def make_contenders(model: nn.Module, layer: str) -> dict[str, Contender]:
    """The contenders that are installed and can explain this network, each with its own copy of it."""
    contenders = {}
    for name, make in CONTENDERS.items():
        with contextlib.suppress(ImportError, NotImplementedError):
            contenders[name] = make(copy_sharing_weights(model), layer)
    return contenders


def max_difference(heatmaps: Tensor, expected: Tensor) -> float:
    """The largest difference between two batches of heatmaps, after both are scaled to [0,1]."""
    heatmaps, expected = (_scaled(maps.cpu().double().unsqueeze(1)) for maps in (heatmaps, expected))
    return float((heatmaps - expected).abs().max())


def _is_transformer(model: nn.Module) -> bool:
    return type(model).__name__ == "VisionTransformer"


def _upsampled(maps: Tensor, images: Tensor) -> Tensor:
    return F.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=False)


def _scaled(maps: Tensor) -> Tensor:
    lowest, highest = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
    return ((maps - lowest) / (highest - lowest))[:, 0]
