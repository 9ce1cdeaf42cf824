"""Recipe B: where a small residual network looked for pneumonia, with one sigmoid output of shape (B,1,1,1).

The recipe averages over the channels where Grad-CAM sums, and divides by the maximum: the division takes the factor
1/C away again, so the maps are equal. It draws the square of the map, enlarged bicubically, over the X-ray.

    python examples/chest_xray.py xray.png --weights pneumonia.pth

No public weights exist; train the network below, then `torch.save(model.state_dict(), "pneumonia.pth")`. Without an
X-ray, a drawing of one is explained.
"""

import torch
from pictures import arguments, load, read, sample_xray, save
from torch import nn
from torch.nn.functional import interpolate

import gradcam_fast
from gradcam_fast.visual import figures
from gradcam_fast.visual.colormaps import colorize


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a 1x1 shortcut, both halving the side."""

    def __init__(self, channels, out):
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride=2), nn.BatchNorm2d(out))
        self.relu = nn.ReLU()

    def forward(self, maps):
        return self.relu(self.convolutions(maps) + self.shortcut(maps))


class PneumoniaNet(nn.Module):
    """(B,3,256,256) images to one probability each, (B,1,1,1)."""

    def __init__(self, widths=(3, 64, 128, 256, 512, 1024)):
        super().__init__()
        self.resnet_blocks = nn.Sequential(*map(ResidualBlock, widths, widths[1:]))
        self.classifier = nn.Sequential(nn.Conv2d(widths[-1], 1, 8, bias=False), nn.Dropout(0.2), nn.Sigmoid())

    def forward(self, images):
        return self.classifier(self.resnet_blocks(images))


def explain(model, images):
    """The raw low-resolution maps (B,8,8), their maximum 1."""
    return gradcam_fast.explain(model, images, layer="resnet_blocks.4", size=(8, 8), normalize="max")


def enlarged(heatmap):
    """Bicubic as Pillow has it: `antialias` chooses its kernel, also where nothing is made smaller."""
    return interpolate(heatmap.unsqueeze(1), (256, 256), mode="bicubic", antialias=True)[:, 0]


def main(argv=None):
    options = arguments(__doc__, argv)
    torch.manual_seed(1)
    model = load(PneumoniaNet(), options.weights)
    xrays = {path.stem: read(path, 256) for path in options.photos} or {"drawn": sample_xray()}
    for name, xray in xrays.items():
        found = explain(model, (xray / 255 - 0.5) / 0.5)
        squared = enlarged(found.heatmap).clamp(0, 1) ** 2
        blend = gradcam_fast.overlay(xray, squared, colormap="jet", alpha=0.4)
        figure = figures.gallery(
            [xray[0], colorize(found.heatmap[0]), blend[0]],
            ["X-ray", "map, 8 x 8", "its square, over the X-ray"],
            title=f"{name}: pneumonia {found.score.item():.1%}",
        )
        save(figure, options.out / f"chest_xray_{name}.png")


if __name__ == "__main__":
    main()
