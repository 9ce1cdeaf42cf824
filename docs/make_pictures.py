"""Draws the pictures of docs/pictures with a trained network: `python docs/make_pictures.py`, in a minute.

The network and the photos come with the packages that `make demo` installs. docs/pictures/one-forward.svg is drawn by
hand.
"""

import sys
from pathlib import Path

import torch

import gradcam_fast
from gradcam_fast.visual import figures

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
sys.path.insert(0, str(ROOT / "examples"))

import bobsled_or_helmet  # noqa: E402
import every_figure  # noqa: E402
from pictures import sample_photo  # noqa: E402

# Score-CAM with few channels, because the picture is small.
METHODS = {method: {} for method in gradcam_fast.methods.METHODS} | {"scorecam": {"channels": 64}}


def drawn():
    """Every picture, by its file name."""
    astronaut, cat, coffee = map(sample_photo, ("astronaut.png", "chelsea.png", "coffee.png"))
    network = every_figure.load_network("efficientnet_lite0")
    explainer = gradcam_fast.Explainer(network.model, preprocess=network.preprocess, names=network.class_names)
    yield "bobsled-or-helmet", bobsled_or_helmet.draw(bobsled_or_helmet.explain(astronaut))
    yield from every_figure.draw(network, every_figure.read_photo(cat)).items()
    bobsled, helmet = map(network.class_names.index, bobsled_or_helmet.CLASSES)
    difference = explainer.replace(normalize="signed")(astronaut, target=lambda out: out[:, bobsled] - out[:, helmet])
    yield "signed", figures.explained(None, difference)
    yield "summary", figures.summary(explainer([cat, coffee], topk=2))
    yield "methods", by_every_method(explainer, cat, target="Egyptian cat")
    yield "methods-earlier", by_every_method(explainer.replace(layer="_blocks.10"), astronaut, target="football helmet")


def by_every_method(explainer, photo, target):
    """A gallery of the overlays of one class by each method."""
    overlays = [
        explainer.replace(method=method, **choices)(photo, target).overlay() for method, choices in METHODS.items()
    ]
    return figures.gallery(overlays, list(METHODS), columns=4)


def main():
    torch.manual_seed(0)
    PICTURES.mkdir(exist_ok=True)
    for name, figure in drawn():
        figures.save(figure, PICTURES / f"{name}.jpg")
        print(f"wrote docs/pictures/{name}.jpg")


if __name__ == "__main__":
    main()
