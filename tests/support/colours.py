"""A network that names the colour of an image, with two stages; its heatmaps are where the colour is.

Images of 56x56 pixels become maps of 14x14, then of 7x7: the mean red, green and blue of each cell.
"""

import torch
from torch import nn

SIDE = 56
# Shares of red, green and blue in each class.
COLOURS = {
    "red": (1, 0, 0),
    "green": (0, 1, 0),
    "blue": (0, 0, 1),
    "yellow": (0.4, 0.4, -0.4),
    "magenta": (0.4, -0.4, 0.4),
    "cyan": (-0.4, 0.4, 0.4),
    "white": (0.1, 0.1, 0.1),
}


def model():
    """Logits: how much of each colour is in the image."""
    first, second = nn.Conv2d(3, 3, 4, 4, bias=False), nn.Conv2d(3, 3, 2, 2, bias=False)
    linear = nn.Linear(3, len(COLOURS), bias=False)
    for conv in (first, second):
        conv.weight.data.zero_()
        for channel in range(3):
            conv.weight.data[channel, channel] = 1 / conv.kernel_size[0] ** 2
    linear.weight.data.copy_(100 * torch.tensor(list(COLOURS.values())))
    return nn.Sequential(
        nn.Sequential(first, nn.ReLU()), nn.Sequential(second, nn.ReLU()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear
    ).eval()
