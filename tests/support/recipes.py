"""The four published recipes as they were written: hooks, copied models, loops over channels, a full backward.

They share no code with each other or with gradcam_fast, and none is tidied. The models come from the caller.
"""

import copy

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def separate(model):
    """A copy that may be changed; it shares the weights, to save memory."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def replace_relus(model):
    for name, child in model.named_children():
        if isinstance(child, nn.ReLU):
            setattr(model, name, nn.ReLU(inplace=False))
        else:
            replace_relus(child)


def recipe_a(model, image, relu=True):
    model = separate(model)
    replace_relus(model)
    store = {}
    hooks = [
        model.features[28].register_forward_hook(lambda module, args, out: store.update(activations=out)),
        model.features[28].register_full_backward_hook(lambda module, gin, gout: store.update(gradients=gout[0])),
    ]
    logits = model(image)
    logits[0, logits.argmax(dim=1).item()].backward()
    for hook in hooks:
        hook.remove()
    model.zero_grad()
    pooled = store["gradients"].mean(dim=[0, 2, 3])
    activations = store["activations"].detach().clone()
    for i in range(512):
        activations[:, i, :, :] *= pooled[i]
    heatmap = activations.sum(dim=1).squeeze().numpy()
    if relu:
        heatmap = np.maximum(heatmap, 0)
    assert heatmap.shape == (14, 14)
    return cv2.resize(heatmap, (224, 224), interpolation=cv2.INTER_LINEAR)


def recipe_b(model, image):
    gradients, activations = None, None

    def backward_hook(module, grad_input, grad_output):
        nonlocal gradients
        gradients = grad_output

    def forward_hook(module, args, output):
        nonlocal activations
        activations = output

    handles = [
        model.resnet_blocks[-1].register_full_backward_hook(backward_hook, prepend=False),
        model.resnet_blocks[-1].register_forward_hook(forward_hook, prepend=False),
    ]
    probability = model(image)
    assert probability.shape == (1, 1, 1, 1)
    probability.backward()
    for handle in handles:
        handle.remove()
    model.zero_grad()
    pooled_gradients = torch.mean(gradients[0], dim=[0, 2, 3])
    activations = activations.detach().clone()
    for i in range(activations.size()[1]):
        activations[:, i, :, :] *= pooled_gradients[i]
    heatmap = F.relu(torch.mean(activations, dim=1).squeeze())
    heatmap /= torch.max(heatmap)
    assert heatmap.shape == (8, 8)
    return heatmap.numpy()


def recipe_c(model, image, index):
    kept = {}

    def forward_hook(module, args, output):
        kept["maps"] = output
        output.register_hook(lambda gradient: kept.update(gradients=gradient))

    handle = model.features[index].register_forward_hook(forward_hook)
    output = model(image)
    handle.remove()
    one_hot = torch.zeros_like(output)
    one_hot[0][243] = 1
    output.backward(gradient=one_hot)
    model.zero_grad()
    weights = F.adaptive_avg_pool2d(kept["gradients"], 1)
    return torch.relu((weights * kept["maps"]).sum(dim=1, keepdim=True)).detach()


def scaled(heatmap):
    return (heatmap - heatmap.min()) / (heatmap.max() - heatmap.min())


def upsampled(heatmap):
    return F.interpolate(heatmap, size=(224, 224), mode="bilinear", align_corners=False)


def recipe_d(model, image, choose):
    features, gradients = [], []
    forward = model.layer4.register_forward_hook(lambda module, args, out: features.append(out))
    backward = model.layer4.register_full_backward_hook(lambda module, gin, gout: gradients.append(gout[0]))
    scores = model(image)
    target = choose(scores)
    model.zero_grad()
    scores[0, target].backward()
    forward.remove()
    backward.remove()
    model.zero_grad()
    feature, gradient = features[0][0].detach().numpy(), gradients[0][0].numpy()
    cam = np.zeros(feature.shape[1:], dtype=np.float32)
    for weight, channel in zip(gradient.mean(axis=(1, 2)), feature, strict=True):
        cam += weight * channel
    cam = cv2.resize(np.maximum(cam, 0), image.shape[-2:][::-1])
    cam = (cam - cam.min()) / (cam.max() - cam.min())
    return target, cam
