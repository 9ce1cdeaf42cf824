"""Recipe D: where ResNet-152 looks for its two most probable classes in the same photo.

One forward gives both heatmaps of all photos; the part of the network before `layer4` is not differentiated.

    python examples/explainable_resnet152.py cat.jpg dog.jpg --weights resnet152-394f9c45.pth

The weights come from `torchvision.models.resnet152(weights="IMAGENET1K_V1")`, which downloads that file once. To
choose the classes yourself, give a row per photo: `target=[[539, 282]]` is doormat, then tiger cat.
"""

import torch
from pictures import arguments, imagenet, load, read, sample_photo, save
from torchvision.models import ResNet152_Weights, resnet152

import gradcam_fast
from gradcam_fast.visual import figures


def explain(model, images, **target):
    """The explanation with heatmaps (B,2,H,W) on [0,1]; 1 is where the map is greatest."""
    return gradcam_fast.explain(model, images, layer="layer4", **target or {"topk": 2})


def main(argv=None):
    options = arguments(__doc__, argv)
    torch.manual_seed(0)
    model = load(resnet152(), options.weights)
    names = ResNet152_Weights.IMAGENET1K_V1.meta["categories"]
    paths = options.photos or [sample_photo("chelsea.png"), sample_photo("coffee.png")]
    photos = torch.cat([read(path, 224) for path in paths])
    explanation = explain(model, imagenet(photos))
    blends = gradcam_fast.overlay(photos, explanation.heatmap).flatten(0, 1)
    captions = [title for image in range(len(paths)) for title in figures.class_titles(explanation, image, names)]
    save(figures.gallery(blends, captions, columns=2), options.out / "explainable.png", weights=options.weights)


if __name__ == "__main__":
    main()
