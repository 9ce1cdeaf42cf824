"""Recipe B: where a small residual network looks for pneumonia. Its output is one sigmoid, of shape (B,1,1,1).

The recipe takes the mean over the channels where Grad-CAM sums, then divides by the maximum, which cancels the factor
1/C: the maps are equal. The square of the map, enlarged bicubically, is drawn over the X-ray.

    python examples/chest_xray.py xray.png --weights pneumonia.pth

No public weights exist: train the network below, then `torch.save(model.state_dict(), "pneumonia.pth")`. Without an
X-ray, the example explains a drawing of one.
"""

import torch
from pictures import arguments, load, read, sample_xray, save
from torch import nn
from torch.nn.functional import interpolate

import gradcam_fast
from gradcam_fast.visual import figures
from gradcam_fast.visual.colormaps import colorize


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, added to a 1x1 shortcut; both halve height and width."""

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
    """Images (B,3,256,256) to one probability each, (B,1,1,1)."""

    def __init__(self, widths=(3, 64, 128, 256, 512, 1024)):
        super().__init__()
        self.resnet_blocks = nn.Sequential(*map(ResidualBlock, widths, widths[1:]))
        self.classifier = nn.Sequential(nn.Conv2d(widths[-1], 1, 8, bias=False), nn.Dropout(0.2), nn.Sigmoid())

    def forward(self, images):
        return self.classifier(self.resnet_blocks(images))


def explain(model, images):
    """The explanation with heatmaps (B,8,8) at the layer's resolution, divided by their maximum."""
    return gradcam_fast.explain(model, images, layer="resnet_blocks.4", size=(8, 8), normalize="max")


def enlarged(heatmap):
    """Heatmaps (B,256,256), enlarged as Pillow's bicubic does: `antialias` selects its kernel, also for enlarging."""
    return interpolate(heatmap.unsqueeze(1), (256, 256), mode="bicubic", antialias=True)[:, 0]


def main(argv=None):
    options = arguments(__doc__, argv)
    torch.manual_seed(1)
    model = load(PneumoniaNet(), options.weights)
    xrays = {path.stem: read(path, 256) for path in options.photos} or {"drawn": sample_xray()}
    for name, xray in xrays.items():
        explanation = explain(model, (xray / 255 - 0.5) / 0.5)
        squared = enlarged(explanation.heatmap).clamp(0, 1) ** 2
        blend = gradcam_fast.overlay(xray, squared, colormap="jet", alpha=0.4)
        figure = figures.gallery(
            [xray[0], colorize(explanation.heatmap[0]), blend[0]],
            ["X-ray", "map, 8 x 8", "its square, over the X-ray"],
            title=f"{name}: pneumonia {explanation.score.item():.1%}",
        )
        save(figure, options.out / f"chest_xray_{name}.png", weights=options.weights)


if __name__ == "__main__":
    main()
