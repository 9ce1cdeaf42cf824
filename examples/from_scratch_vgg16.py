"""Recipe A: where VGG16 looks for its most probable class, at the last convolution, before its in-place ReLU.

With hooks by hand the model must be changed: the ReLU behind `features.28` overwrites the output that the hook kept, so
every ReLU is replaced by one that is not in-place. Here it is enough to name the layer.

    python examples/from_scratch_vgg16.py photo.jpg --weights vgg16-397923af.pth

The weights come from `torchvision.models.vgg16(weights="IMAGENET1K_V1")`, which downloads that file once.
"""

import torch
from pictures import arguments, imagenet, load, read, sample_photo, save
from torchvision.models import VGG16_Weights, vgg16

import gradcam_fast
from gradcam_fast.features import feature_maps
from gradcam_fast.visual import figures

LAYER = "features.28"
NAMES = VGG16_Weights.IMAGENET1K_V1.meta["categories"]


def explain(model, images, normalize="none", **choices):
    """The explanation of the highest logit, its heatmaps (B,H,W) not normalised; `relu=False` keeps negative values."""
    return gradcam_fast.explain(model, images, layer=LAYER, normalize=normalize, **choices)


def main(argv=None):
    options = arguments(__doc__, argv)
    torch.manual_seed(0)
    model = load(vgg16(), options.weights)
    for path in options.photos or [sample_photo()]:
        photo = read(path, 224)
        explanation = explain(model, imagenet(photo), normalize="minmax")
        by_suffix = {
            "": figures.explained(photo, explanation, NAMES, colormap="coolwarm", edges=True),
            "_classes": figures.classes(photo[0], explanation.logits[0], NAMES),
        }
        # Feature maps and gradients of the same layer, for the recipe's other figures.
        maps = feature_maps(model, imagenet(photo), layer=LAYER)
        raw, _, _ = gradcam_fast.cam(maps.activations, maps.gradients, (14, 14), normalize="none", relu=False)
        by_suffix["_relu"] = figures.relu(photo[0], raw[0], edges=True)
        by_suffix["_channels"] = figures.channels(maps.activations[0], maps.gradients[0])
        for suffix, figure in by_suffix.items():
            save(figure, options.out / f"from_scratch_{path.stem}{suffix}.png", weights=options.weights)


if __name__ == "__main__":
    main()
