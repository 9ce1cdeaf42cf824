"""Detectors written out small, with the heads of well-known families; all are in eval mode and have random weights.

Each returns what the real one returns in eval mode: decoded boxes (in pixels) and class probabilities of all anchors.
"""

import torch
from torch import nn
from torch.nn import functional as F


def conv_act(inputs, outputs, kernel=3, stride=1):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2), nn.BatchNorm2d(outputs), nn.SiLU(inplace=True)
    )


class Neck(nn.Module):
    """Two levels, of 1/4 and 1/8 of the sides, 16 channels each: a pyramid down and up again."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv_act(3, 8, stride=2), conv_act(8, 16, stride=2))
        self.deep = conv_act(16, 16, stride=2)
        self.fine, self.down, self.coarse = conv_act(32, 16), conv_act(16, 16, stride=2), conv_act(32, 16)

    def forward(self, images):
        shallow = self.stem(images)
        deep = self.deep(shallow)
        fine = self.fine(torch.cat([shallow, F.interpolate(deep, scale_factor=2)], 1))
        return [fine, self.coarse(torch.cat([self.down(fine), deep], 1))]


def anchor_points(levels):
    """Centres (2,A) of all cells, and the stride (1,A) of each."""
    points, strides = [], []
    for level, maps in enumerate(levels):
        rows, columns = maps.shape[-2:]
        y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
        points.append(torch.stack([x, y]).flatten(1))
        strides.append(torch.full((1, rows * columns), 4.0 * 2**level))
    return torch.cat(points, 1), torch.cat(strides, 1)


def boxes_of_distances(distances, points, strides):
    """Centre and sides (B,4,A) in pixels from distances to left, top, right and bottom in cells."""
    left_top, right_bottom = distances.chunk(2, 1)
    first, last = points - left_top, points + right_bottom
    return torch.cat([(first + last) / 2, last - first], 1) * strides


class AnchorHead(nn.Module):
    """Yolo v3 to v7: one convolution for each level; boxes, objectness and classes of 2 anchors a cell, (B,A,5+3)."""

    def __init__(self):
        super().__init__()
        self.neck = Neck()
        self.detect = nn.ModuleList(nn.Conv2d(16, 2 * 8, 1) for _ in range(2))
        self.eval()

    def forward(self, images):
        found = []
        for maps, conv in zip(self.neck(images), self.detect, strict=True):
            raw = conv(maps).unflatten(1, (2, 8)).permute(0, 1, 3, 4, 2).contiguous()
            xy, wh, conf = raw.sigmoid().split((2, 2, 4), 4)
            found.append(torch.cat(((xy * 2 - 0.5) * 4, (wh * 2) ** 2 * 8, conf), 4).flatten(1, 3))
        return torch.cat(found, 1), found


class Decoupled(nn.Module):
    """Yolo v8 to v12: a branch of boxes (as distributions over bins) and one of classes at each level, (B,4+3,A).

    Args:
        bins: for each side of a box; 1 for distances as they are, as in v26.
        way: how the mean over the bins is written: "convolution" with fixed weights, "product", "sum" or "mean".
        extra: "masks" or "poses" add a branch.
        end_to_end: whether the best boxes are picked in the forward, (B,5,6), by branches on detached maps.
    """

    def __init__(self, bins=8, *, way="convolution", extra=None, end_to_end=False):
        super().__init__()
        self.bins, self.extra, self.end_to_end, self.way = bins, extra, end_to_end, way
        self.neck = Neck()
        self.boxes, self.classes = self.branches(4 * bins), self.branches(3)
        self.of_bins = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)
        self.of_bins.weight.data[:] = torch.arange(bins, dtype=torch.float).reshape(1, bins, 1, 1)
        self.register_buffer("numbers", torch.arange(bins, dtype=torch.float))
        if extra:
            self.extras = self.branches({"masks": 6, "poses": 5 * 3}[extra])
            self.prototypes = nn.Sequential(conv_act(16, 16), nn.Upsample(scale_factor=2), conv_act(16, 6, 1))
        self.eval()

    def branches(self, outputs):
        return nn.ModuleList(nn.Sequential(conv_act(16, 16), conv_act(16, 16), nn.Conv2d(16, outputs, 1)) for _ in "12")

    def distances(self, raw):
        if self.bins == 1:
            return raw
        bins = raw.unflatten(1, (4, self.bins))
        if self.way == "convolution":
            return self.of_bins(bins.transpose(2, 1).softmax(1)).flatten(1, 2)
        if self.way == "product":
            return bins.permute(0, 3, 1, 2).softmax(3).matmul(self.numbers).transpose(1, 2)
        weighted = bins.softmax(2) * self.numbers[:, None]
        return weighted.sum(2) if self.way == "sum" else weighted.mean(2) * self.bins

    def forward(self, images):
        levels = self.neck(images)
        if self.end_to_end:
            levels = [maps.detach() for maps in levels]
        raw = [torch.cat([b(maps), c(maps)], 1) for maps, b, c in zip(levels, self.boxes, self.classes, strict=True)]
        joined = torch.cat([level.flatten(2) for level in raw], 2)
        points, strides = anchor_points(levels)
        distances, scores = self.distances(joined[:, :-3]), joined[:, -3:].sigmoid()
        found = torch.cat([boxes_of_distances(distances, points, strides), scores], 1)
        if self.end_to_end:
            best, places = scores.amax(1).topk(5, 1)
            boxes = found[:, :4].transpose(1, 2).gather(1, places.unsqueeze(2).expand(-1, -1, 4))
            label = scores.argmax(1).gather(1, places).to(best.dtype)
            return torch.cat([boxes, best.unsqueeze(2), label.unsqueeze(2)], 2), raw
        if self.extra == "masks":
            coefficients = torch.cat([e(m).flatten(2) for e, m in zip(self.extras, levels, strict=True)], 2)
            return torch.cat([found, coefficients], 1), (raw, coefficients, self.prototypes(levels[0]))
        if self.extra == "poses":
            joints = torch.cat([e(m).flatten(2) for e, m in zip(self.extras, levels, strict=True)], 2)
            joints = joints.unflatten(1, (5, 3))
            xy = (joints[:, :, :2] * 2 + points - 0.5) * strides
            return torch.cat([found, torch.cat([xy, joints[:, :, 2:].sigmoid()], 2).flatten(1, 2)], 1), raw
        return found, raw


class SharedHead(nn.Module):
    """RetinaNet and FCOS: the same towers at each level, then classes and boxes, as logits (B,A,3) and (B,A,4)."""

    def __init__(self):
        super().__init__()
        self.neck = Neck()
        self.towers = nn.ModuleDict({name: conv_act(16, 16) for name in ("classes", "boxes")})
        self.classes, self.boxes = nn.Conv2d(16, 3, 3, 1, 1), nn.Conv2d(16, 4, 3, 1, 1)
        self.eval()

    def forward(self, images):
        levels = self.neck(images)
        outputs = {"cls_logits": self.classes, "bbox_regression": self.boxes}
        return {
            name: torch.cat([conv(tower(maps)).flatten(2).mT for maps in levels], 1)
            for (name, conv), tower in zip(outputs.items(), self.towers.values(), strict=True)
        }


class LiteHead(nn.Module):
    """SSDlite: a depthwise block and a 1x1 convolution for each level; a softmax over the classes, (B,A,3)."""

    def __init__(self):
        super().__init__()
        self.neck = Neck()
        self.classes = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.BatchNorm2d(16), nn.ReLU6(), nn.Conv2d(16, 6, 1))
            for _ in range(2)
        )
        self.eval()

    def forward(self, images):
        levels = zip(self.neck(images), self.classes, strict=True)
        logits = [head(maps).unflatten(1, (2, 3)).permute(0, 3, 4, 1, 2).flatten(1, 3) for maps, head in levels]
        return torch.cat(logits, 1).softmax(2)
