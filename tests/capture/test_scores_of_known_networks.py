"""The logits are picked from what known networks return: auxiliary heads, dicts, dataclasses.

Small stand-ins for every container are in test_scores.py and test_explainer_refusals.py.
"""

import pytest
import torch
from support import naive
from support.tolerances import RECIPE_PARITY
from support.unchanged import unchanged

from gradcam_fast import explain

torchvision = pytest.importorskip("torchvision")


@pytest.mark.parametrize(("family", "layer"), [("googlenet", "inception5b"), ("inception_v3", "Mixed_7c")])
def test_the_main_head_is_explained_and_not_the_auxiliary_one(family, layer):
    model = getattr(torchvision.models, family)(weights=None, aux_logits=True, init_weights=True)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    images = torch.randn(2, 3, 299, 299) if family == "inception_v3" else torch.randn(2, 3, 96, 96)
    with unchanged(model):
        explanation = explain(model, images, layer=layer, target=[3, 7])
    activations, gradients, output = naive.full_graph(
        model, layer, images, lambda out: out.logits.gather(1, torch.tensor([[3], [7]]))[:, 0]
    )
    assert len(output) == {"googlenet": 3, "inception_v3": 2}[family]
    assert all(member is not None for member in output)
    torch.testing.assert_close(explanation.logits, output.logits.detach())
    expected = naive.gradcam(activations, gradients, images.shape[-2:])
    torch.testing.assert_close(explanation.heatmap.double(), expected, rtol=0, atol=RECIPE_PARITY)


def test_the_main_output_of_a_segmentation_network_is_explained():
    model = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True).eval()
    images = torch.randn(1, 3, 64, 64)

    def score(logits):
        return logits[:, 4].mean((-2, -1))

    by_name = explain(model, images, target=lambda out: score(out["out"]), layer="backbone.layer4")
    assert set(by_name.logits) == {"out", "aux"}
    picked = explain(model, images, output=lambda out: out["out"], target=score, layer="backbone.layer4")
    assert torch.equal(by_name.heatmap, picked.heatmap)
    activations, gradients, _ = naive.full_graph(model, "backbone.layer4", images, lambda out: score(out["out"]))
    expected = naive.gradcam(activations, gradients, (64, 64))
    torch.testing.assert_close(picked.heatmap.double(), expected, rtol=0, atol=RECIPE_PARITY)


def test_the_logits_of_a_hugging_face_dataclass_are_explained():
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_labels=5
    )
    model = transformers.ResNetForImageClassification(config).eval()
    images = torch.randn(2, 3, 64, 64)
    by_call, by_name = explain(model, images), explain(model, {"pixel_values": images})
    with torch.no_grad():
        torch.testing.assert_close(by_call.logits, model(images).logits)
    assert torch.equal(by_call.heatmap, by_name.heatmap)
    with pytest.raises(TypeError, match=r"'last_hidden_state'.*'pooler_output'.*output="):
        explain(model.resnet, images)
