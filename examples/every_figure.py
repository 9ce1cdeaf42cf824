"""Every kind of figure there is, of photos that you name or of a cat, by a real network that is already installed.

    python examples/every_figure.py photo.jpg

The network is EfficientNet-Lite0, trained on ImageNet, with the weights of the package that `make demo` installs.
"""

from pictures import arguments, sample_photo, save

import gradcam_fast
from gradcam_fast.cli.models import load_network
from gradcam_fast.cli.photos import pixels, read_photo
from gradcam_fast.features import feature_maps
from gradcam_fast.visual import figures

DEPTHS = ["_blocks.1", "_blocks.3", "_blocks.8", "_blocks.15"]


def coarse(maps, **choices):
    """Heatmaps (B,h,w) at the layer's own resolution."""
    return gradcam_fast.cam(maps.activations, maps.gradients, maps.activations.shape[2:], **choices)[0]


def draw(network, photo):
    """A figure by the name of what it shows."""
    images, shown = network.preprocess([photo]), pixels(photo)
    best = gradcam_fast.explain(network.model, images, topk=2)
    # All depths come from one more forward, each map at its layer's own resolution.
    depths = feature_maps(network.model, images, layer=DEPTHS)
    heatmaps = [coarse(each)[0] for each in depths]
    signed = coarse(depths[2], normalize="none", relu=False)[0]
    return {
        "explained": figures.explained([shown], best, network.class_names),
        "edges": figures.explained([shown], best, network.class_names, colormap="coolwarm", edges=True),
        "classes": figures.classes(shown, best.logits[0], network.class_names),
        "layers": figures.layers(shown, heatmaps, DEPTHS),
        "relu": figures.relu(shown, signed),
        "channels": figures.channels(depths[-1].activations[0], depths[-1].gradients[0]),
    }


def main(argv=None):
    options = arguments(__doc__, argv)
    network = load_network("efficientnet_lite0")
    for path in options.photos or [sample_photo()]:
        for what, figure in draw(network, read_photo(path)).items():
            save(figure, options.out / f"{path.stem}-{what}.jpg")


if __name__ == "__main__":
    main()
