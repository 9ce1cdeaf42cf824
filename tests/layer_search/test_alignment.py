"""No map of mirrored, turned or transposed images is laid on the images as they lie."""

import warnings

import pytest
import torch
from support.heads import Views, trunk
from support.networks import PatchNet, pooled_head
from torch import nn

from gradcam_fast import explain
from gradcam_fast.exceptions import NoLayerFound, NotSpatial

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TURNS = {
    "mirrored": lambda images: images.flip(3),
    "upside down": lambda images: images.flip(2),
    "turned by a quarter": lambda images: images.rot90(1, (2, 3)),
    "turned by half": lambda images: images.rot90(2, (2, 3)),
    "transposed": lambda images: images.mT,
}
OTHERS = {
    "as it is": lambda images: images,
    "scaled": lambda images: nn.functional.interpolate(images, scale_factor=2),
    "cut": lambda images: images[..., 4:-4, 4:-4],
    "other colours": lambda images: images.flip(1) * 2 - 1,
    "beside its mirror image": lambda images: (images + images.flip(3)) / 2,
    "moved by a little": lambda images: images.roll(3, 3),
    "Fourier transform": lambda images: torch.fft.fft2(images).abs(),
}


class Turned(nn.Module):
    """Does something to the images before a network."""

    def __init__(self, turn, model):
        super().__init__()
        self.turn, self.model = turn, model
        self.eval()

    def forward(self, images):
        return self.model(self.turn(images))


def convolutional():
    return nn.Sequential(trunk(), pooled_head(16))


NETWORKS = {"convolutions": convolutional, "tokens": lambda: PatchNet(0), "class token": lambda: PatchNet(1)}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_model_that_turns_its_images_is_refused(turn, network):
    torch.manual_seed(1)
    model = Turned(TURNS[turn], NETWORKS[network]())
    for _ in range(2):
        with pytest.raises(NoLayerFound, match=r"mirrors, turns or transposes the images .* tokens= a callable"):
            explain(model, IMAGES, target=1)


@pytest.mark.parametrize("turn", OTHERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_model_that_does_something_else_to_its_images_is_explained(turn, network):
    torch.manual_seed(1)
    inner = NETWORKS[network]()
    explanation = explain(Turned(OTHERS[turn], inner), IMAGES, target=1, relu=False)
    of_inner = explain(inner.eval(), OTHERS[turn](IMAGES), target=1, relu=False)
    assert explanation.layer == f"model.{of_inner.layer}" and explanation.valid.all()


@pytest.mark.parametrize("found_before", [False, True])
def test_named_tokens_of_a_model_that_turns_its_images_are_refused_and_turned_back_by_a_callable(found_before):
    torch.manual_seed(1)
    inner = PatchNet(1)
    model = Turned(TURNS["mirrored"], inner)
    if found_before:
        with pytest.raises(NoLayerFound):
            explain(model, IMAGES)
    with pytest.raises(NotSpatial, match=r"of a model that mirrors, .* give tokens= a callable that turns them back"):
        explain(model, IMAGES, target=1, layer="model.norm")
    expected = explain(inner, IMAGES.flip(3), target=1, relu=False).heatmap.flip(2)

    def turned_back(tokens):
        return tokens[:, 1:].mT.unflatten(2, (4, 4)).flip(3)

    explanation = explain(model, IMAGES, target=1, layer="model.norm", tokens=turned_back, relu=False)
    torch.testing.assert_close(explanation.heatmap, expected)


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("first", [0, 1])
def test_of_views_the_last_one_that_lies_as_the_images_do_is_explained(turn, first):
    torch.manual_seed(1)
    model = Views(lambda images: (images, TURNS[turn](images)) if first == 0 else (TURNS[turn](images), images))
    with pytest.warns(UserWarning, match="'trunk' show a part of what the score depends on"):
        explanation = explain(model, IMAGES, target=1, relu=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = explain(model, IMAGES, target=1, relu=False, layer="trunk", call=first)
    assert explanation.layer == "trunk" and expected.valid.all()
    torch.testing.assert_close(explanation.heatmap, expected.heatmap, rtol=0, atol=1e-6)
