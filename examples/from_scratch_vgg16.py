"""Recipe A: where VGG16 looked for its best guess, at the last convolution, before its in-place ReLU.

Written with hooks by hand, this takes model surgery: the ReLU behind `features.28` overwrites what the hook kept, so
every ReLU is replaced by an out-of-place one. Here nothing is replaced; the layer is named and that is all.

    python examples/from_scratch_vgg16.py photo.jpg --weights vgg16-397923af.pth

The weights come from `torchvision.models.vgg16(weights="IMAGENET1K_V1")`, which downloads that file once.
"""

import cv2
import torch
from pictures import arguments, imagenet, load, read, sample_photo, save
from torchvision.models import VGG16_Weights, vgg16

import gradcam_fast


def explain(model, images, **choices):
    """Unnormalised maps (B,H,W) of the highest logit; `relu=False` shows the evidence against it too."""
    return gradcam_fast.explain(model, images, layer="features.28", normalize="none", **choices)


def edges(photo):
    """The photo's outline, gray on white, (1,3,H,W)."""
    found = cv2.Canny(photo[0].permute(1, 2, 0).contiguous().numpy(), 100, 200)
    gray = 255 - found // 2
    return torch.from_numpy(gray).expand(1, 3, *gray.shape)


def stretched(heatmap):
    return (heatmap - heatmap.min()) / (heatmap.max() - heatmap.min())


def main(argv=None):
    options = arguments(__doc__, argv)
    torch.manual_seed(0)
    model = load(vgg16(), options.weights)
    names = VGG16_Weights.IMAGENET1K_V1.meta["categories"]
    for path in options.photos or [sample_photo()]:
        photo = read(path, 224)
        found = explain(model, imagenet(photo))
        for probability, index in zip(*found.logits[0].softmax(0).topk(5), strict=True):
            print(f"{path.name}: {names[index]} {probability:.1%}")
        signed = explain(model, imagenet(photo), relu=False)
        drawn = [
            gradcam_fast.overlay(edges(photo), stretched(map_), colormap="coolwarm", alpha=0.5)
            for map_ in (signed.heatmap, found.heatmap)
        ]
        save(options.out / f"from_scratch_{path.stem}.png", photo, *drawn)


if __name__ == "__main__":
    main()
