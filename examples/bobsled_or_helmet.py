"""Draws why a network takes an astronaut for a bobsled, and where it sees a football helmet: the picture of the README.

    python examples/bobsled_or_helmet.py --out docs/pictures

The network is EfficientNet-Lite0 with its published weights, the photo NASA's portrait of Eileen Collins in
scikit-image; both come with the packages that `make demo` installs. The two heatmaps are of one prediction.
"""

from every_figure import load_network
from pictures import arguments, sample_photo, save

import gradcam_fast
from gradcam_fast.visual import figures

CLASSES = ["bobsled", "football helmet"]


def explain(photo):
    """The explanation of both classes, (1,2,H,W)."""
    network = load_network("efficientnet_lite0")
    explainer = gradcam_fast.Explainer(network.model, preprocess=network.preprocess, names=network.class_names)
    return explainer(photo, target=[CLASSES])


def draw(explanation):
    """The photo, and both heatmaps over it, under the classes and their probabilities."""
    overlays = explanation.overlay()
    shares = explanation.probabilities[0, explanation.target[0]].tolist()
    captions = ["the photo", *(f"{name}: {share:.0%}" for name, share in zip(CLASSES, shares, strict=True))]
    return figures.gallery([explanation.photos[0], *overlays], captions)


def main(argv=None):
    options = arguments(__doc__, argv)
    explanation = explain(options.photos[0] if options.photos else sample_photo("astronaut.png"))
    save(draw(explanation), options.out / "bobsled-or-helmet.jpg")


if __name__ == "__main__":
    main()
