"""Methods that run a model on changed copies hold `chunk` copies at once, each with the memory of the model's head.

The head is what lies behind the layer; for Score-CAM, which changes the image itself, it is the whole model.
"""

import pytest
import torch
from support.live_memory import peak_bytes
from torch import nn

import gradcam_fast

CHUNKS = (1, 4, 16)


class Patches(nn.Module):
    """Patches of 8 pixels as tokens, behind a class token."""

    def __init__(self, width):
        super().__init__()
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.patch = nn.Conv2d(3, width, 8, 8)

    def forward(self, images):
        return torch.cat([self.class_token.expand(len(images), -1, -1), self.patch(images).flatten(2).mT], 1)


class FirstToken(nn.Module):
    def forward(self, tokens):
        return tokens[:, 0]


def block(inputs, outputs, stride=1):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def convolutional():
    """A network whose trunk takes more memory than its head, as ResNets are; the layer is in its middle."""
    trunk = nn.Sequential(block(3, 16), block(16, 16, 2), block(16, 32, 2))
    head = nn.Sequential(block(32, 48, 2), block(48, 48), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(192, 5))
    return trunk, head


def transformer():
    def encoder():
        return nn.TransformerEncoderLayer(32, 2, 64, dropout=0, batch_first=True, norm_first=True)

    trunk = nn.Sequential(Patches(32), encoder(), nn.LayerNorm(32))
    return trunk, nn.Sequential(encoder(), encoder(), nn.LayerNorm(32), FirstToken(), nn.Linear(32, 5))


@pytest.fixture(params=[convolutional, transformer])
def parts(request):
    torch.manual_seed(0)
    trunk, head = request.param()
    return nn.Sequential(trunk, head).eval()


def photos(count=1):
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def bytes_of_head(model, method):
    """What one copy needs: its activations (or image), and the most that the modules behind hold at a time."""
    head, inputs = (model, photos()) if method == "scorecam" else (model[1], model[0](photos()))
    return inputs.nbytes + peak_bytes(lambda: head(inputs.clone()))


def bytes_of_method(model, images, method, **choices):
    explainer = gradcam_fast.Explainer(model, layer="0", method=method, **choices)
    explainer(images, 1)  # what is found out once is known from here on: layouts, and whether the head is affine
    return peak_bytes(lambda: explainer(images, 1))


@pytest.mark.parametrize("method", ["ablation", "reciprocam", "scorecam"])
@pytest.mark.parametrize("images", [1, 8])
def test_memory_above_a_prediction_is_that_of_chunk_copies_of_the_head(method, images, parts):
    batch, head = photos(images), bytes_of_head(parts, method)
    with torch.no_grad():
        prediction = peak_bytes(lambda: parts(batch))
    # Of the batch the activations, which are kept, and the maps: as they are, resized, and scaled.
    kept = parts[0](batch).nbytes + 3 * images * 64 * 64 * 4
    for chunk in CHUNKS:
        assert bytes_of_method(parts, batch, method, chunk=chunk) <= prediction + kept + chunk * head


class ReadsEarlierMaps(nn.Module):
    """A head that adds a map from before the layer."""

    def __init__(self):
        super().__init__()
        self.first, self.layer, self.head = block(3, 16), block(16, 16), nn.Sequential(block(16, 16), nn.Flatten())
        self.classes = nn.Linear(16 * 64 * 64, 5)
        self.eval()

    def forward(self, images):
        first = self.first(images)
        return self.classes(self.head(self.layer(first) + first))


def test_what_the_head_reads_from_before_the_layer_is_held_once():
    def explained(chunk):
        return gradcam_fast.explain(model, photos(), target=1, layer="layer", method="ablation", chunk=chunk)

    model, maps = ReadsEarlierMaps(), 16 * 64 * 64 * 4
    few, more = (peak_bytes(lambda chunk=chunk: explained(chunk)) for chunk in (4, 8))
    # Of each copy the activations, their sum with the earlier maps, and what two modules of the head return.
    assert more - few <= 4 * 4 * maps
