"""Models whose graph is cut: a map behind the cut is explained, or one sentence says why there is none."""

import pytest
import torch
from support.heads import block, trunk
from support.networks import pooled_head
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gradcam_fast import explain
from gradcam_fast._layer_search.failures import cuts_patches
from gradcam_fast.exceptions import NoLayerFound

IMAGES = torch.rand(2, 3, 32, 32)


def without_gradients(mode):
    def cut(trunk, images):
        with mode():
            return trunk(images)

    return cut


CUTS = {
    "detach": lambda trunk, images: trunk(images).detach(),
    "data": lambda trunk, images: trunk(images).data,
    "NumPy": lambda trunk, images: torch.from_numpy(trunk(images).detach().numpy()),
    "lists": lambda trunk, images: torch.tensor(trunk(images).tolist()),
    "argmax": lambda trunk, images: F.one_hot(trunk(images).argmax(1), 16).movedim(-1, 1).float(),
    "inference mode, cloned": lambda trunk, images: without_gradients(torch.inference_mode)(trunk, images).clone(),
}
INFERENCE = without_gradients(torch.inference_mode)


class Cut(nn.Module):
    """A trunk, a cut, a block of convolutions or nothing, and a head."""

    def __init__(self, cut, *, neck):
        super().__init__()
        self.trunk, self.neck, self.head = trunk(), block(16, 16, 1) if neck else nn.Identity(), pooled_head(16)
        self.cut = cut
        self.eval()

    def forward(self, images):
        return self.head(self.neck(self.cut(self.trunk, images)))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("cut", CUTS)
def test_a_map_behind_the_cut_is_explained(cut, count, frozen):
    torch.manual_seed(0)
    model = Cut(CUTS[cut], neck=True).requires_grad_(not frozen)
    explanation = explain(model, IMAGES[:count], target=1, relu=False)
    assert explanation.layer == "neck" and explanation.valid.all()
    named = explain(model, IMAGES[:count], target=1, relu=False, layer="neck")
    assert torch.equal(explanation.heatmap, named.heatmap)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("cut", [*CUTS.values(), INFERENCE], ids=[*CUTS, "inference mode"])
def test_without_a_map_behind_the_cut_the_last_one_before_is_named(cut, frozen):
    model = Cut(cut, neck=False).requires_grad_(not frozen)
    with pytest.raises(NoLayerFound, match=r"last feature map, 'trunk': the model cuts the graph behind it .* remove"):
        explain(model, IMAGES, target=1)


@pytest.mark.parametrize("neck", [False, True])
def test_a_trunk_without_gradients_is_explained(neck):
    explanation = explain(Cut(without_gradients(torch.no_grad), neck=neck), IMAGES, target=1, relu=False)
    assert explanation.layer == ("neck" if neck else "trunk") and explanation.valid.all()


def test_a_trunk_in_inference_mode_before_a_head_with_weights_to_train_is_said():
    model = Cut(INFERENCE, neck=True)
    with pytest.raises(NoLayerFound, match=r"runs a part in torch.inference_mode\(\).* use torch.no_grad\(\) there"):
        explain(model, IMAGES, target=1)
    assert explain(model, IMAGES, target=1, layer="neck", relu=False).valid.all()  # the way out that it names


class Checkpointed(nn.Module):
    """Runs a part in a reentrant checkpoint."""

    def __init__(self, part):
        super().__init__()
        self.trunk, self.neck, self.head, self.part = trunk(), block(16, 16, 1), pooled_head(16), part
        self.eval()

    def forward(self, images):
        steps = {"trunk": ([self.trunk], [self.neck]), "neck": ([self.neck], []), "all": ([self.trunk, self.neck], [])}
        inside, behind = steps[self.part]
        maps = self.trunk(images) if self.part == "neck" else images
        maps = checkpoint(nn.Sequential(*inside), maps, use_reentrant=True)
        for module in behind:
            maps = module(maps)
        return self.head(maps)


@pytest.mark.parametrize("part", ["neck", "all"])
def test_a_reentrant_checkpoint_is_said(part):
    with pytest.raises(NoLayerFound, match=r"use_reentrant=True, which cannot .* use use_reentrant=False, turn"):
        explain(Checkpointed(part), IMAGES, target=1)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_reentrant_checkpoint_before_the_last_map_does_not_matter():
    torch.manual_seed(0)
    assert explain(Checkpointed("trunk"), IMAGES, target=1, relu=False).layer == "neck"


def test_an_output_that_is_all_there_is_to_explain_is_no_cut():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(NoLayerFound, match="has no spatial feature map"):
        explain(model, IMAGES, target=lambda out: out[:, 1].mean((1, 2)))


@pytest.mark.parametrize(
    ("module", "cuts"),
    [
        (nn.Conv2d(3, 8, 16, 16), True),
        (nn.Sequential(nn.Conv2d(3, 8, (4, 8), (4, 8)), nn.LayerNorm(8)), True),
        (nn.Conv2d(3, 8, 3, 2), False),
        (nn.Conv2d(3, 8, 1), False),
        (nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 2, 2)), False),
        (nn.LayerNorm(8), False),
    ],
    ids=str,
)
def test_one_convolution_whose_stride_is_its_kernel_cuts_patches(module, cuts):
    assert cuts_patches(module) == cuts
