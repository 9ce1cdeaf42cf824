"""normalize="signed": maps in [-1,1] that keep what speaks against the class, on every backend and in every picture."""

import pytest
import torch
from support.drawn import pictures_in, texts_in
from support.networks import ConvNet

import gradcam_fast
from gradcam_fast import Explainer, cam, overlay, reference
from gradcam_fast.visual import figures
from gradcam_fast.visual.colormaps import colorize

# Grad-CAM's raw map is 1 * A_0 - 2 * A_1 = [[-4, 0], [2, 1]].
ACTIVATIONS = torch.tensor([[[[0.0, 2.0], [2.0, 1.0]], [[2.0, 1.0], [0.0, 0.0]]]])
GRADIENTS = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
EXPECTED = torch.tensor([[[-1.0, 0.0], [0.5, 0.25]]])


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("function", [cam, reference.cam])
def test_the_largest_magnitude_becomes_one_and_zero_stays_zero(function, relu):
    heatmap, low, high = function(ACTIVATIONS, GRADIENTS, 2, normalize="signed", relu=relu)
    assert torch.equal(heatmap, EXPECTED)
    assert (low.item(), high.item()) == (-4, 2)
    assert not heatmap.requires_grad


@pytest.mark.parametrize("function", [cam, reference.cam])
@pytest.mark.parametrize("sign", [1, -1])
def test_maps_of_one_sign_and_flat_ones(function, sign):
    heatmap, _, _ = function(sign * torch.tensor([[[[1.0, 4.0]]]]), torch.ones(1, 1, 1, 2), (1, 2), normalize="signed")
    assert torch.equal(heatmap, sign * torch.tensor([[[0.25, 1.0]]]))
    zeros, _, _ = function(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), 2, normalize="signed")
    assert not zeros.any()
    broken, low, high = function(torch.full((1, 1, 2, 2), torch.nan), torch.ones(1, 1, 2, 2), 2, normalize="signed")
    assert not broken.any() and low.isnan().all() and high.isnan().all()


def test_it_is_the_unscaled_map_divided_by_its_greatest_magnitude(images):
    model = ConvNet()
    for layer in ["features.3", ["features.3", "features.0"]]:
        explanation = gradcam_fast.explain(model, images, topk=2, layer=layer, normalize="signed")
        heatmap = explanation.heatmap
        assert explanation.signed and float(heatmap.min()) < 0
        torch.testing.assert_close(heatmap.abs().amax((2, 3)), torch.ones(3, 2))
    raw = gradcam_fast.explain(model, images, layer="features.3", normalize="none", relu=False)
    signed = Explainer(model, layer="features.3", normalize="signed")(images)
    scale = torch.maximum(raw.raw_max, -raw.raw_min)[:, None, None]
    torch.testing.assert_close(signed.heatmap, raw.heatmap / scale)
    assert torch.equal(signed.raw_min, raw.raw_min) and torch.equal(signed.raw_max, raw.raw_max)


def test_clips_share_one_signed_scale():
    class PerPicture(ConvNet):
        def forward(self, clips):
            return super().forward(clips.flatten(0, 1)).unflatten(0, clips.shape[:2]).mean(1)

    clips = torch.randn(2, 3, 3, 16, 16)
    signed = gradcam_fast.explain(PerPicture(), clips, layer="features.3", normalize="signed")
    torch.testing.assert_close(signed.heatmap.abs().amax((1, 2, 3)), torch.ones(2))
    assert signed.heatmap.min() < 0


def test_overlays_have_a_neutral_colour_at_zero_and_warm_ones_above():
    photo = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    blend = overlay(photo, EXPECTED, signed=True, alpha=1.0)[0]
    assert torch.equal(blend, colorize((EXPECTED[0] + 1) / 2, "coolwarm"))
    against, neutral, in_favour = blend[:, 0, 0].tolist(), blend[:, 0, 1].tolist(), blend[:, 1, 0].tolist()
    assert against[2] > against[0] + 50 and in_favour[0] > in_favour[2] and max(neutral) - min(neutral) < 5
    assert torch.equal(
        overlay(photo, EXPECTED, signed=True, colormap="jet", alpha=1.0)[0], colorize((EXPECTED[0] + 1) / 2)
    )


def test_a_signed_map_that_is_not_said_to_be_one_is_refused():
    with pytest.raises(ValueError, match=r"heatmap ranges from -1 to 0\.5"):
        overlay(torch.zeros(1, 3, 2, 2), EXPECTED)


def test_figures_show_signed_explanations_on_a_scale_from_minus_one_to_one(images, tmp_path):
    explanation = gradcam_fast.explain(ConvNet(), images[:1], layer="features.3", normalize="signed")
    photo = torch.zeros(3, 16, 16, dtype=torch.uint8)
    figure = figures.explained([photo], explanation)
    assert texts_in(figure)[-3:] == ["-1", "0", "1"]
    shown = pictures_in(figure, tmp_path / "a.png")[1]
    full = torch.nn.functional.interpolate(explanation.heatmap[None], shown.shape[1:], mode="bilinear")[0, 0]
    assert (shown.int() - colorize((full + 1) / 2, "coolwarm").int()).abs().max() <= 2
    assert texts_in(figures.summary(explanation))[-3:] == ["-1", "0", "1"]
    explanation.save(tmp_path / "a.npz")
    assert gradcam_fast.Explanation.load(tmp_path / "a.npz").signed
