"""A small detector with the head of YOLOv8 or YOLOv5: boxes and class scores of three levels in one tensor."""

import torch
from torch import nn


class ConvBlock(nn.Sequential):
    def __init__(self, channels, features, kernel=3, stride=1):
        super().__init__(
            nn.Conv2d(channels, features, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(features), nn.SiLU()
        )


def tower(width, outputs):
    return nn.Sequential(ConvBlock(width, width), ConvBlock(width, width), nn.Conv2d(width, outputs, 1))


class Yolo(nn.Module):
    """A trunk of five strides of two, a neck that goes down and up again, and a head for each of three levels.

    Args:
        kind: "v8" returns (B,4+classes,N) of separate towers for boxes and classes; "v5" (B,N,5+classes) of one
            convolution, with an objectness.
    """

    def __init__(self, kind, classes=3, width=8):
        super().__init__()
        self.kind = kind
        self.stem = nn.Sequential(ConvBlock(3, width, stride=2), ConvBlock(width, width, stride=2))
        self.stages = nn.ModuleList(ConvBlock(width, width, stride=2) for _ in range(3))
        self.laterals = nn.ModuleList(ConvBlock(2 * width, width) for _ in range(2))
        self.up = nn.Upsample(scale_factor=2)
        if kind == "v8":
            self.boxes, self.classes = (
                nn.ModuleList(tower(width, outputs) for _ in range(3)) for outputs in (4, classes)
            )
        else:
            self.predict = nn.ModuleList(nn.Conv2d(width, 5 + classes, 1) for _ in range(3))

    def forward(self, images):
        levels, maps = [], self.stem(images)
        for stage in self.stages:
            maps = stage(maps)
            levels.append(maps)
        for place in (1, 0):
            levels[place] = self.laterals[place](torch.cat([levels[place], self.up(levels[place + 1])], 1))
        if self.kind == "v8":
            parts = [
                torch.cat([boxes(level).exp(), classes(level).sigmoid()], 1).flatten(2)
                for boxes, classes, level in zip(self.boxes, self.classes, levels, strict=True)
            ]
            return torch.cat(parts, 2)
        parts = [predict(level).sigmoid().flatten(2).mT for predict, level in zip(self.predict, levels, strict=True)]
        return torch.cat(parts, 1)


def class_on_middle_level(output):
    """The score of class 1 at a position of the middle level, of 64x64 images: 64, 16 and 4 positions."""
    if output.shape[1] == 7:
        return output[:, 5, 64 + 6]
    return output[:, 64 + 6, 4] * output[:, 64 + 6, 6]
