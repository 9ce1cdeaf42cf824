"""A network whose explanation is known: it tells red from blue, and its heatmap is where the colour is.

Images of 56x56 pixels become a map of 7x7: the mean red and the mean blue of each cell of 8x8 pixels.
"""

import time

import torch
from PIL import Image
from torch import nn

from gradcam_fast.pipeline.networks import Network
from gradcam_fast.preprocess import Preprocess

SIDE, CELL = 56, 8
NAMES = ("red", "blue")


def model():
    """Logits: the mean red and the mean blue of the image."""
    net = nn.Sequential(nn.Conv2d(3, 2, CELL, CELL, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    weight = torch.zeros(2, 3, CELL, CELL)
    weight[0, 0], weight[1, 2] = 1 / CELL**2, 1 / CELL**2
    net[0].weight.data.copy_(weight)
    return net.eval()


class Slow(nn.Module):
    """Takes its time."""

    def forward(self, maps):
        time.sleep(0.25)
        return maps


def slow_model():
    """The same, a quarter of a second later."""
    return nn.Sequential(*model(), Slow()).eval()


def network(crop=None, probabilities="softmax", interpolation="box"):
    fit = {"fit": "stretch"} if crop is None else {"crop": crop}
    preprocess = Preprocess((SIDE, SIDE), mean=(0,) * 3, std=(1,) * 3, interpolation=interpolation, **fit)
    return Network("red or blue", model(), preprocess, NAMES, probabilities=probabilities)


def photo(colour="red", cell=(2, 5), scale=4):
    """Black, with one 8x8 cell (row, column) of the network's input in a colour, ``scale`` times as large."""
    side = CELL * scale
    picture = Image.new("RGB", (SIDE * scale, SIDE * scale))
    picture.paste(colour, (cell[1] * side, cell[0] * side, (cell[1] + 1) * side, (cell[0] + 1) * side))
    return picture
