"""Recipe C: where VGG16 would look for a class of your choice (243, bull mastiff), and what its earlier layers show.

The target layer is the last max-pool, `features.30`. A backward pass from a one-hot vector is what `target=` means.

    python examples/demystified_vgg16.py photo.jpg --weights vgg16-397923af.pth

The weights come from `torchvision.models.vgg16(weights="IMAGENET1K_V1")`, which downloads that file once.
"""

import torch
from pictures import arguments, imagenet, load, read, sample_photo, save
from torchvision.models import VGG16_Weights, vgg16

import gradcam_fast

BULL_MASTIFF = 243
POOLS = ("features.4", "features.9", "features.16", "features.23", "features.30")


def explain(model, images, layer=POOLS[-1], **choices):
    """Maps (B,H,W) on [0,1] for the chosen class."""
    return gradcam_fast.explain(model, images, target=BULL_MASTIFF, layer=layer, **choices)


def main(argv=None):
    options = arguments(__doc__, argv)
    torch.manual_seed(0)
    model = load(vgg16(), options.weights)
    name = VGG16_Weights.IMAGENET1K_V1.meta["categories"][BULL_MASTIFF]
    for path in options.photos or [sample_photo()]:
        photo = read(path, 224)
        by_depth = [explain(model, imagenet(photo), layer) for layer in POOLS]
        print(f"{path.name}: {name} {by_depth[-1].logits.softmax(1)[0, BULL_MASTIFF]:.1%}")
        jet = [gradcam_fast.overlay(photo, found.heatmap, colormap="jet", alpha=1.0) for found in by_depth]
        blend = gradcam_fast.overlay(photo, by_depth[-1].heatmap, colormap="jet", alpha=0.5)
        save(options.out / f"demystified_{path.stem}.png", photo, jet[-1], blend)
        save(options.out / f"demystified_{path.stem}_depths.png", *jet)


if __name__ == "__main__":
    main()
