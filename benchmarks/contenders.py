"""The networks that are explained, and the ways of explaining them that users have today, each as it is documented.

Every contender predicts, and gives for each image one heatmap in [0,1] of the class predicted: (B,H,W), at the images'
size. Knows nothing of clocks, memory or reports.
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

# By name in torchvision: how the network is called, and the layer gradcam_fast finds, which everybody is given.
NETWORKS = {
    "resnet18": ("ResNet-18", "layer4"),
    "resnet50": ("ResNet-50", "layer4"),
    "vgg16": ("VGG16", "features.29"),
    "mobilenet_v3_large": ("MobileNetV3-L", "features"),
    "efficientnet_b0": ("EfficientNet-B0", "features"),
    "convnext_tiny": ("ConvNeXt-T", "features"),
    "vit_b_16": ("ViT-B/16", "encoder.layers.encoder_layer_11.ln_1"),
}
GRID = (14, 14)  # of ViT-B/16 at 224x224

Contender = Callable[[Tensor], Tensor]


@functools.lru_cache(maxsize=1)
def build(name: str) -> nn.Module:
    """A network of torchvision in eval mode with random weights under which it says something.

    Batch-norm has seen one batch, else activations die out in a deep network; the head, which ViT starts with zeros, is
    large enough that gradients are well above the absolute epsilons of some contenders.
    """
    models = importlib.import_module("torchvision.models")
    torch.manual_seed(0)
    model: nn.Module = getattr(models, name)(weights=None)
    *_, last = (module for module in model.modules() if isinstance(module, nn.Linear))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        last.weight.normal_()
        if norms:
            model.train()(torch.randn(2, 3, 224, 224))
    return model.eval()


def sharing_weights(model: nn.Module) -> nn.Module:
    """A copy for one contender: some leave their hooks in it, which would slow down the others and the prediction."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def eager(activations: Tensor, gradients: Tensor, size: tuple[int, int]) -> Tensor:
    """The op alone, (B,1,H,W), in the lines of plain PyTorch that it replaces."""
    maps = (gradients.mean((2, 3), keepdim=True) * activations).sum(1, keepdim=True).relu()
    maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - low) / (high - low)


def predict(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The prediction alone, which is what an explanation is measured by."""

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(images)

    return run


def ours(model: nn.Module, layer: str) -> Contender:
    explainer = gradcam_fast.Explainer(model)
    return lambda images: explainer(images).heatmap


def recipe(model: nn.Module, layer: str) -> Contender:
    """The quickest of the four published recipes, the third: one image at a time, a full backward."""
    if _is_transformer(model):
        raise NotImplementedError("the recipe reads no tokens")
    module = model.get_submodule(layer)

    def explain(image: Tensor) -> Tensor:
        kept: dict[str, Tensor] = {}

        def forward_hook(module: nn.Module, args: object, output: Tensor) -> None:
            kept["maps"] = output
            output.register_hook(lambda gradient: kept.update(gradients=gradient))

        handle = module.register_forward_hook(forward_hook)
        output = model(image)
        handle.remove()
        one_hot = torch.zeros_like(output)
        one_hot[0][output.argmax(1).item()] = 1
        output.backward(gradient=one_hot)
        model.zero_grad()
        weights = F.adaptive_avg_pool2d(kept["gradients"], 1)
        heatmap = torch.relu((weights * kept["maps"]).sum(1, keepdim=True)).detach()
        return _scaled(_upsampled(heatmap, image))

    return lambda images: torch.cat([explain(images[i : i + 1]) for i in range(len(images))])


def pytorch_grad_cam(model: nn.Module, layer: str) -> Contender:
    from pytorch_grad_cam import GradCAM

    reshape = (lambda tokens: tokens[:, 1:].mT.unflatten(2, GRID)) if _is_transformer(model) else None
    cam = GradCAM(model, [model.get_submodule(layer)], reshape_transform=reshape)
    return lambda images: torch.from_numpy(cam(images, targets=None))


def torchcam(model: nn.Module, layer: str) -> Contender:
    from torchcam.methods import GradCAM

    if _is_transformer(model):
        raise NotImplementedError("torchcam reads no tokens")
    cam = GradCAM(model, layer)

    def explain(images: Tensor) -> Tensor:
        scores = model(images)
        (maps,) = cam(scores.argmax(1).tolist(), scores)
        return _scaled(_upsampled(maps.unsqueeze(1), images))

    return explain


def captum(model: nn.Module, layer: str) -> Contender:
    """It asks for the class: the prediction comes first, without a graph."""
    from captum.attr import LayerAttribution, LayerGradCam

    if _is_transformer(model):
        raise NotImplementedError("captum's Grad-CAM reads no tokens")
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


def contenders(model: nn.Module, layer: str) -> dict[str, Contender]:
    """Those that are installed and can explain this network, each with a copy of its own."""
    found = {}
    for name, make in CONTENDERS.items():
        with contextlib.suppress(ImportError, NotImplementedError):
            found[name] = make(sharing_weights(model), layer)
    return found


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference between two batches of heatmaps, both scaled to [0,1] first."""
    found, expected = (_scaled(maps.cpu().double().unsqueeze(1)) for maps in (found, expected))
    return float((found - expected).abs().max())


def _is_transformer(model: nn.Module) -> bool:
    return type(model).__name__ == "VisionTransformer"


def _upsampled(maps: Tensor, images: Tensor) -> Tensor:
    return F.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=False)


def _scaled(maps: Tensor) -> Tensor:
    low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
    return ((maps - low) / (high - low))[:, 0]
