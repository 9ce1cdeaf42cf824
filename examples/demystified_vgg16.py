"""Recipe C: where VGG16 would look for a class of your choice (243, bull mastiff), and what its earlier layers show.

The target layer is the last max-pool, `features.30`. A backward pass from a one-hot vector is what `target=` means.

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
    """Maps (B,H,W) on [0,1] for the chosen class."""
    return gradcam_fast.explain(model, images, target=BULL_MASTIFF, layer=layer, **choices)


def main(argv=None):
    options = arguments(__doc__, argv)
    torch.manual_seed(0)
    model = load(vgg16(), options.weights)
    names = VGG16_Weights.IMAGENET1K_V1.meta["categories"]
    for path in options.photos or [sample_photo()]:
        photo = read(path, 224)
        found = explain(model, imagenet(photo))
        save(figures.explained(photo, found, names), options.out / f"demystified_{path.stem}.png")
        # All depths come from one more forward, each map at its layer's own resolution.
        depths = feature_maps(model, imagenet(photo), layer=POOLS, target=BULL_MASTIFF)
        heatmaps = [
            gradcam_fast.cam(each.activations, each.gradients, each.activations.shape[2:])[0] for each in depths
        ]
        figure = figures.layers(photo[0], [heatmap[0] for heatmap in heatmaps], POOLS)
        save(figure, options.out / f"demystified_{path.stem}_depths.png")


if __name__ == "__main__":
    main()
