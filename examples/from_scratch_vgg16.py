"""Recipe A: where VGG16 looked for its best guess, at the last convolution, before its in-place ReLU.

Written with hooks by hand, this takes model surgery: the ReLU behind `features.28` overwrites what the hook kept, so
every ReLU is replaced by an out-of-place one. Here nothing is replaced; the layer is named and that is all.

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
    """Maps (B,H,W) of the highest logit, not normalised; `relu=False` shows the evidence against it too."""
    return gradcam_fast.explain(model, images, layer=LAYER, normalize=normalize, **choices)


def main(argv=None):
    options = arguments(__doc__, argv)
    torch.manual_seed(0)
    model = load(vgg16(), options.weights)
    for path in options.photos or [sample_photo()]:
        photo = read(path, 224)
        found = explain(model, imagenet(photo), normalize="minmax")
        drawn = {
            "": figures.explained(photo, found, NAMES, colormap="coolwarm", edges=True),
            "_classes": figures.classes(photo[0], found.logits[0], NAMES),
        }
        # The same layer's feature maps and gradients, for the recipe's other pictures.
        maps = feature_maps(model, imagenet(photo), layer=LAYER)
        raw, _, _ = gradcam_fast.cam(maps.activations, maps.gradients, (14, 14), normalize="none", relu=False)
        drawn["_relu"] = figures.relu(photo[0], raw[0], edges=True)
        drawn["_channels"] = figures.channels(maps.activations[0], maps.gradients[0])
        for what, figure in drawn.items():
            save(figure, options.out / f"from_scratch_{path.stem}{what}.png")


if __name__ == "__main__":
    main()
