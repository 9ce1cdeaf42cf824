"""Grad-CAM as in the textbook: a graph through the whole network, and maps image by image.

The expected values of many tests. It shares no code with gradcam_fast, so that both cannot have the same fault.
"""

import copy

import torch
from torch.nn import functional as F


def full_graph(model, layer, images, score, *other_inputs):
    """Activations and gradients at the named layer, and the output, from an ordinary forward of a copy of the model.

    `score` turns the output into one number per image; `other_inputs` are the model's inputs after the images. Of a
    layer that runs several times the last call counts.
    """
    twin = copy.deepcopy(model)
    kept = []

    def keep(_, __, output):
        if not isinstance(output, torch.Tensor):  # a dataclass of transformers; its first member holds the maps
            kept[:] = output[:1]
            return None
        kept[:] = [output]
        return output.clone()  # so that an in-place operation behind the layer does not overwrite what was kept

    twin.get_submodule(layer).register_forward_hook(keep)
    with torch.inference_mode(False), torch.enable_grad():
        output = twin(images.clone().requires_grad_(), *other_inputs)
        (gradients,) = torch.autograd.grad(score(output).sum(), kept[0])
    return kept[0].detach(), gradients, output.detach() if isinstance(output, torch.Tensor) else output


def highest(output):
    return output.max(1).values


def of_class(index):
    return lambda output: output[:, index]


def gradcam(activations, gradients, size):
    """Selvaraju et al., ICCV 2017, equations 1 and 2, upsampled, then scaled to [0,1]; in float64."""
    maps = []
    for activation, gradient in zip(activations.double(), gradients.double(), strict=True):
        raw = sum(g.mean() * a for a, g in zip(activation, gradient, strict=True)).clamp(min=0)
        raw = F.interpolate(raw[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        maps.append((raw - raw.min()) / (raw.max() - raw.min()))
    return torch.stack(maps)


def heatmaps(model, layer, images, score, *other_inputs):
    """Normalised Grad-CAM maps (B,H,W) of the images, in float64."""
    activations, gradients, _ = full_graph(model, layer, images, score, *other_inputs)
    return gradcam(activations, gradients, images.shape[-2:])
