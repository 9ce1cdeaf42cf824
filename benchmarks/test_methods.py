"""The cost of every method in predictions, beside pytorch-grad-cam and torchcam.

    make bench BENCH=benchmarks/test_methods.py

Two networks with random weights, one image of 224x224, at the last layer and at the stage before it. Contenders run in
interleaved rounds; those that run the network for hundreds of changed copies only once or twice, without a warm-up, so
that all of it takes a few minutes. No test fails because of a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from contenders import NETWORKS, build, copy_sharing_weights, predict

import gradcam_fast
from gradcam_fast.cli.demo import sample_photos
from gradcam_fast.pipeline.networks import load_network

LAYERS = [
    ("resnet18", "layer4"),
    ("resnet18", "layer3"),
    ("efficientnet_b0", "features"),
    ("efficientnet_b0", "features.7"),
]
PREDICTIONS = 10


class Compared(NamedTuple):
    """A method by its choices, and the names of the same in other libraries, with their arguments.

    Attributes:
        choices: of the Explainer.
        pytorch_grad_cam: class and arguments of the call.
        torchcam: class and arguments of the constructor.
        variants: other choices, by name.
        rounds: None for as many as fit into a few seconds.
    """

    choices: Mapping[str, Any]
    pytorch_grad_cam: tuple[str, Mapping[str, Any]] | None = None
    torchcam: tuple[str, Mapping[str, Any]] | None = None
    variants: Mapping[str, Mapping[str, Any]] = {}
    rounds: int | None = None


METHODS = {
    "gradcam": Compared({}, ("GradCAM", {}), ("GradCAM", {})),
    "eigencam": Compared({"method": "eigencam"}, ("EigenCAM", {})),
    "eigengradcam": Compared({"method": "eigengradcam"}, ("EigenGradCAM", {})),
    "reciprocam": Compared({"method": "reciprocam"}),
    "smooth=eigen": Compared({"smooth": "eigen"}, ("GradCAM", {"eigen_smooth": True})),
    "smooth=augment": Compared({"smooth": "augment"}, ("GradCAM", {"aug_smooth": True})),
    "gradcam++, smooth=noise, 4 samples": Compared(
        {"method": "gradcam++", "smooth": "noise", "samples": 4}, None, ("SmoothGradCAMpp", {"num_samples": 4})
    ),
    "ablation": Compared({"method": "ablation"}, ("AblationCAM", {}), rounds=2),
    "scorecam": Compared(
        {"method": "scorecam"},
        ("ScoreCAM", {}),
        ("ScoreCAM", {}),
        variants={"64 channels": {"method": "scorecam", "channels": 64}},
        rounds=1,
    ),
}


def ours(model, layer, choices) -> Callable[..., Any]:
    explainer = gradcam_fast.Explainer(model, layer=layer, **choices)
    return lambda images: explainer(images)


def pytorch_grad_cam(model, layer, name, arguments) -> Callable[..., Any]:
    library = pytest.importorskip("pytorch_grad_cam")
    model = copy_sharing_weights(model)
    cam = getattr(library, name)(model, [model.get_submodule(layer)])
    return lambda images: cam(images, targets=None, **arguments)


def torchcam(model, layer, name, arguments) -> Callable[..., Any]:
    library = pytest.importorskip("torchcam.methods")
    model = copy_sharing_weights(model)
    cam = getattr(library, name)(model, layer, **arguments)

    def explain(images):
        scores = model(images)
        return cam(scores.argmax(1).tolist(), scores)

    return explain


@pytest.mark.parametrize(("network", "layer"), LAYERS)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_in_predictions(compare, method, network, layer):
    compared, model = METHODS[method], build(network)
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    prediction = predict(model)
    contenders = {"explainer": ours(model, layer, compared.choices)}
    for name, choices in compared.variants.items():
        contenders[name] = ours(model, layer, choices)
    if compared.pytorch_grad_cam is not None:
        contenders["pytorch-grad-cam"] = pytorch_grad_cam(model, layer, *compared.pytorch_grad_cam)
    if compared.torchcam is not None:
        contenders["torchcam"] = torchcam(model, layer, *compared.torchcam)
    running = {name: functools.partial(explain, images) for name, explain in contenders.items()}
    compare(
        "methods in predictions",
        f"{NETWORKS[network][0]}, {layer}, {method}",
        {**running, "ten predictions": lambda: [prediction(images) for _ in range(PREDICTIONS)]},
        [f"{name}/explainer" for name in contenders if name != "explainer"],
        rounds=compared.rounds,
        seconds=6,
        warm_up=compared.rounds is None,
    )


@pytest.mark.parametrize("photo", sample_photos()[0], ids=lambda path: path.stem)
def test_64_channels_beside_all_on_the_photos_of_the_demo(benchmark, photo):
    network = load_network("efficientnet_lite0")
    image = network.preprocess(photo).images

    def correlation():
        some, every = (
            gradcam_fast.explain(network.model, image, method="scorecam", channels=channels).heatmap.flatten()
            for channels in (64, None)
        )
        return float(torch.corrcoef(torch.stack([some, every]))[0, 1])

    value = benchmark.pedantic(correlation)
    benchmark.extra_info.update({"table": "Score-CAM of 64 channels", "row": photo.stem, "correlation": value})
