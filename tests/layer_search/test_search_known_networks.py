"""The layer found in known networks, its grid, and the heatmap there against the full graph of the network."""

import pytest
import torch
from support import zoo, zoo_tasks
from support.tolerances import RECIPE_PARITY

from gradcam_fast import explain
from gradcam_fast.exceptions import NoLayerFound

NETWORKS = [
    pytest.param(network, id=network.title.replace(" ", "-"), marks=[pytest.mark.slow] if network.slow else [])
    for network in (*zoo.NETWORKS, *zoo_tasks.NETWORKS)
]


WITH_EARLIER_LAYERS = {"Mask2FormerForUniversalSegmentation"}


@pytest.mark.parametrize("network", NETWORKS)
def test_the_layer_found_in_known_networks(network):
    if network.library != "written out":
        pytest.importorskip(network.library)
    model, images, inputs = zoo.prepare(network)
    if network.layer is None:
        with pytest.raises(NoLayerFound, match=network.note):
            zoo.explained(network, model, images, inputs)
        return
    explanation = zoo.explained(network, model, images, inputs)
    assert explanation.layer == network.layer
    assert explanation.valid.all()
    named = zoo.explained(network, model, images, inputs, layer=network.layer)
    # Where a model has several heads, earlier layers are recorded, too, and attention with a graph rounds differently.
    tolerance = 1e-6 if network.name in WITH_EARLIER_LAYERS else 0
    torch.testing.assert_close(explanation.heatmap, named.heatmap, rtol=0, atol=tolerance)
    expected = zoo.full_graph_heatmap(network, model, images, inputs, [network.layer])
    torch.testing.assert_close(explanation.heatmap.double(), expected, rtol=0, atol=RECIPE_PARITY)


def test_every_family_of_torchvision_and_forty_of_timm_are_in_the_zoo():
    models, timm = pytest.importorskip("torchvision").models, pytest.importorskip("timm")
    builders = [models.get_model_builder(name) for name in models.list_models()]
    families = {builder.__module__ for builder in builders if "quantization" not in builder.__module__}  # no gradient
    names = {network.name for network in (*zoo.NETWORKS, *zoo_tasks.NETWORKS) if network.library == "torchvision"}
    assert families - {models.get_model_builder(name).__module__ for name in names & set(models.list_models())} == {
        "torchvision.models.video.mvit"  # its smallest network takes minutes; a smaller one of its class is there
    }
    of_timm = [network.name for network in (*zoo.NETWORKS, *zoo_tasks.NETWORKS) if network.library == "timm"]
    assert len({timm.model_entrypoint(name).__module__ for name in of_timm}) >= 40


def test_two_trunks_of_a_timm_network_are_explained_together():
    timm = pytest.importorskip("timm")
    model, images = timm.create_model("crossvit_tiny_240").eval(), torch.randn(2, 3, 240, 240)
    explanation = explain(model, images, relu=False)
    layers = ("blocks.2.fusion.0.norm1", "blocks.2.fusion.1.norm1")
    assert explanation.layer == layers and explanation.valid.all()
    single = [explain(model, images, layer=layer, relu=False).heatmap for layer in layers]
    mean = torch.stack(single).double().mean(0)
    low, high = mean.amin((1, 2), keepdim=True), mean.amax((1, 2), keepdim=True)
    torch.testing.assert_close(explanation.heatmap.double(), (mean - low) / (high - low), rtol=0, atol=RECIPE_PARITY)
