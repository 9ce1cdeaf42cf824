"""Methods without gradients as naive loops: one channel or position at a time, through a hook that changes the layer.

They share no code with gradcam_fast, and run a copy of the model.
"""

import copy

import torch
from torch.nn import functional as F


def output_with(model, layer, images, change, call=-1):
    """The model's output with `change` applied to what the layer returned in one call, by default the last."""
    twin, count = copy.deepcopy(model), []
    handle = twin.get_submodule(layer).register_forward_hook(lambda *_: count.append(1))
    with torch.no_grad():
        twin(images.clone())  # a model may write into its input
        handle.remove()
        wanted, seen = range(len(count))[call], []

        def hook(_, __, output):
            seen.append(1)
            return change(output.clone()) if len(seen) - 1 == wanted else None

        twin.get_submodule(layer).register_forward_hook(hook)
        return twin(images.clone())


def activations_of(model, layer, images):
    kept = []
    output_with(model, layer, images, lambda output: kept.append(output.clone()) or output)
    return kept[0]


def ablation_weights(model, layer, image, score, *, select=lambda output, k: (slice(None), k), count=None):
    """(y - y_k) / |y| of one image (1,...), one channel at a time; `select` gives the place of channel k."""
    activations = activations_of(model, layer, image)
    y = score(output_with(model, layer, image, lambda output: output))
    weights = []
    for k in range(count or activations.shape[1]):

        def without(output, k=k):
            output[select(output, k)] = 0
            return output

        weights.append((y - score(output_with(model, layer, image, without))) / y.abs())
    return torch.stack(weights).flatten()


def ablation(model, layer, images, score):
    """Maps (B,h,w) before ReLU."""
    maps = []
    for image in images.split(1):
        weights = ablation_weights(model, layer, image, score)
        activations = activations_of(model, layer, image)[0]
        maps.append(sum(w * a for w, a in zip(weights, activations, strict=True)))
    return torch.stack(maps)


def reciprocam(model, layer, images, score):
    """Maps (B,h,w): scores of the activations under a Gaussian around each position, less that of none."""
    maps = []
    for image in images.split(1):
        height, width = activations_of(model, layer, image).shape[2:]
        nothing = score(output_with(model, layer, image, torch.zeros_like))
        saliency = torch.zeros(height, width, dtype=image.dtype)
        for row in range(height):
            for column in range(width):
                mask = torch.zeros(height, width, dtype=image.dtype)
                for down in (-1, 0, 1):
                    for right in (-1, 0, 1):
                        if 0 <= row + down < height and 0 <= column + right < width:
                            mask[row + down, column + right] = (2 - abs(down)) * (2 - abs(right)) / 16
                under = output_with(model, layer, image, lambda output, mask=mask: output * mask)
                saliency[row, column] = (score(under) - nothing).item()
        maps.append(saliency)
    return torch.stack(maps)


def scorecam(model, layer, images, score, channels=None):
    """Maps (B,h,w) before ReLU: every channel by itself, and a softmax over scores of mean 0 and deviation 1."""
    maps = []
    for image in images.split(1):
        activations = activations_of(model, layer, image)[0]
        kept = [k for k, a in enumerate(activations) if a.max() > a.min()]
        if channels is not None:
            kept = sorted(sorted(kept, key=lambda k: activations[k].min() - activations[k].max())[:channels])
        scores = []
        for k in kept:
            mask = F.interpolate(activations[k][None, None], image.shape[2:], mode="bilinear", align_corners=False)
            mask = (mask - mask.min()) / (mask.max() - mask.min())
            with torch.no_grad():
                scores.append(score(copy.deepcopy(model)(image * mask)))
        scores = torch.stack(scores).flatten()
        weights = ((scores - scores.mean()) / scores.std(correction=0)).softmax(0)
        maps.append(sum(w * activations[k] for w, k in zip(weights, kept, strict=True)))
    return torch.stack(maps)


def scaled(raw, size):
    """Maps (B,h,w) after ReLU, resized, to [0,1]; zeros where nothing is positive."""
    raw = F.interpolate(raw.clamp(min=0)[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    low, high = raw.amin((1, 2), keepdim=True), raw.amax((1, 2), keepdim=True)
    return torch.where(high > low, (raw - low) / (high - low), 0)
