"""Recipe C: where VGG16 looks for a chosen class (243, bull mastiff), and the heatmaps of its earlier layers.

The target layer is the last max-pool, `features.30`. `target=` stands for the recipe's backward from a one-hot vector.

    python examples/demystified_vgg16.py photo.jpg --weights vgg16-397923af.pth

The weights come from `torchvision.models.vgg16(weights="IMAGENET1K_V1")`, which downloads that file once.
"""

import torch
from pictures import arguments, imagenet, load, read, sample_photo, save
from torchvision.models import VGG16_Weights, vgg16

import gradcam_fast
from gradcam_fast.features import feature_maps
from gradcam_fast.visual import figures

BULL_MASTIFF = 243
POOLS = ("features.4", "features.9", "features.16", "features.23", "features.30")


def explain(model, images, layer=POOLS[-1], **choices):
    """The explanation of the chosen class, with heatmaps (B,H,W) on [0,1]."""
    return gradcam_fast.explain(model, images, target=BULL_MASTIFF, layer=layer, **choices)


def main(argv=None):
    options = arguments(__doc__, argv)
    torch.manual_seed(0)
    model = load(vgg16(), options.weights)
    names = VGG16_Weights.IMAGENET1K_V1.meta["categories"]
    for path in options.photos or [sample_photo()]:
        photo = read(path, 224)
        explanation = explain(model, imagenet(photo))
        save(
            figures.explained(photo, explanation, names),
            options.out / f"demystified_{path.stem}.png",
            weights=options.weights,
        )
        # One more forward gives the maps of all layers, each at its own resolution.
        layer_maps = feature_maps(model, imagenet(photo), layer=POOLS, target=BULL_MASTIFF)
        heatmaps = [
            gradcam_fast.cam(maps.activations, maps.gradients, maps.activations.shape[2:])[0] for maps in layer_maps
        ]
        figure = figures.layers(photo[0], [heatmap[0] for heatmap in heatmaps], POOLS)
        save(figure, options.out / f"demystified_{path.stem}_depths.png", weights=options.weights)


if __name__ == "__main__":
    main()
