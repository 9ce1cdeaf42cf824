"""`targets.detection` on one tensor of all predictions, as YOLO heads return it, with values computed by hand."""

import pytest
import torch
from support.refusals import assert_says
from torch import nn

import gradcam_fast
from gradcam_fast import targets

# Two images of three predictions: boxes as x1, y1, x2, y2, and a score for each of two classes.
BOXES = torch.tensor(
    [
        [[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 40.0], [21.0, 20.0, 30.0, 40.0]],
        [[5.0, 5.0, 7.0, 7.0], [0.0, 0.0, 4.0, 8.0], [50.0, 50.0, 60.0, 60.0]],
    ]
)
SCORES = torch.tensor([[[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], [[0.7, 0.8], [0.15, 0.25], [0.35, 0.45]]])
OBJECTNESS = torch.tensor([[[1.0], [0.5], [0.25]], [[0.5], [1.0], [0.75]]])
CENTRED = torch.cat([(BOXES[..., :2] + BOXES[..., 2:]) / 2, BOXES[..., 2:] - BOXES[..., :2]], 2)
BEHIND = torch.full((2, 3, 32), 0.99)
LABELS = torch.tensor([[[0.0], [1.0], [1.0]], [[1.0], [0.0], [1.0]]])

FORMS = {
    "yolov8": ({}, torch.cat([CENTRED, SCORES], 2).transpose(1, 2), SCORES),
    "yolov8 with masks": ({"classes": 2}, torch.cat([CENTRED, SCORES, BEHIND], 2).transpose(1, 2), SCORES),
    "yolov8 with corners": ({"box_format": "xyxy"}, torch.cat([BOXES, SCORES], 2).transpose(1, 2), SCORES),
    "yolov5": ({"head": "yolov5"}, torch.cat([CENTRED, OBJECTNESS, SCORES], 2), SCORES * OBJECTNESS),
    "yolov5 with masks": (
        {"head": "yolov5", "classes": 2},
        torch.cat([CENTRED, OBJECTNESS, SCORES, BEHIND], 2),
        SCORES * OBJECTNESS,
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wrap", [lambda y: y, lambda y: (y, [y]), lambda y: ((y, y[:, :1]), {"raw": y})])
def test_a_box_has_the_score_of_its_label_at_the_prediction_that_overlaps_most(wrap, form):
    choices, output, scores = FORMS[form]
    # In the first image 20..30 overlaps the second prediction most; the second image has one box, and 9 pixels apart.
    target = targets.detection([[[0, 0, 10, 10], [20, 20, 30, 39]], [[0, 0, 4, 8]]], [[1, 0], [1]], **choices)
    expected = torch.stack([scores[0, 0, 1], scores[0, 1, 0], scores[1, 1, 1], torch.tensor(0.0)]).reshape(2, 2)
    torch.testing.assert_close(target(wrap(output)), expected)


@pytest.mark.parametrize("behind", [0, 32])
def test_predictions_with_one_label_each_match_by_label_too(behind):
    best = SCORES.gather(2, LABELS.long())
    output = torch.cat([BOXES, best, LABELS, BEHIND[..., :behind]], 2)
    target = targets.detection(
        [[[20, 20, 30, 40], [0, 0, 10, 10]], [[50, 50, 60, 60], [0, 0, 4, 8]]], [[1, 1], [1, 1]], head="yolov10"
    )
    torch.testing.assert_close(target(output), torch.tensor([[0.4, 0.0], [0.45, 0.0]]))


def test_only_the_score_is_differentiated():
    output = FORMS["yolov8"][1].clone().requires_grad_()
    targets.detection([[[20, 20, 30, 40]], [[5, 5, 7, 7]]], [[1], [0]])(output).sum().backward()
    expected = torch.zeros_like(output)
    expected[0, 5, 1] = expected[1, 4, 0] = 1
    assert torch.equal(output.grad, expected)


def test_of_predictions_that_overlap_alike_the_highest_score_counts():
    output = torch.cat([CENTRED[:1, [1, 1, 0]], SCORES[:1]], 2).transpose(1, 2)
    assert targets.detection(BOXES[0, 1:2], [0])(output).tolist() == [[SCORES[0, 1, 0].item()]]


def test_an_image_without_boxes_may_have_empty_lists():
    target = targets.detection([[], [[5, 5, 7, 7]]], [[], [1]])
    torch.testing.assert_close(target(FORMS["yolov8"][1]), torch.tensor([[0.0], [0.8]]))


@pytest.mark.parametrize("form", FORMS)
def test_the_host_does_not_wait_for_the_device(form):
    choices, output, _ = FORMS[form]
    score = targets.detection([[[0, 0, 1, 1]]] * 2, [[1]] * 2, **choices)(output.to("meta"))
    assert score.device.type == "meta" and score.shape == (2, 1)


def test_half_precision_is_scored_in_single():
    score = targets.detection([[[0, 0, 10, 10]]] * 2, [[1]] * 2)(FORMS["yolov8"][1].half())
    assert score.dtype == torch.float32


BOX = ([[0.0, 0.0, 2.0, 2.0]], [1])
SHAPE = "(B,4+classes,N)"


def refused(name, make, error, *parts):
    return pytest.param(make, error, parts, id=name)


@pytest.mark.parametrize(
    ("make", "error", "parts"),
    [
        refused("head", lambda: targets.detection(*BOX, head="yolo"), ValueError, "head='yolo'", "'yolov8'"),
        refused("format", lambda: targets.detection(*BOX, box_format="xywh"), ValueError, "='xywh'", "'xyxy'"),
        refused("classes", lambda: targets.detection(*BOX, classes=0), ValueError, "classes=0", "at least 1"),
        refused("classes", lambda: targets.detection(*BOX, classes="80"), TypeError, "classes='80'", "str", "integer"),
        refused(
            "few columns", lambda: targets.detection(*BOX, classes=80)(torch.rand(1, 20, 99)), ValueError,
            "(1, 20, 99)", "20 columns", SHAPE, "at least 84", "classes=",
        ),
        refused(
            "no label", lambda: targets.detection(*BOX, head="yolov10")(torch.rand(1, 99, 5)), ValueError, "(1, 99, 5)",
            "(B,N,6)", "at least 6",
        ),
        refused(
            "rows", lambda: targets.detection(*BOX)(torch.rand(1, 300, 38)), ValueError, "(1, 300, 38)",
            "head='yolov5'", "'yolov10'", "'yolov8'",
        ),
        refused(
            "label", lambda: targets.detection(BOX[0], [3])(torch.rand(1, 7, 99)), ValueError, "label 3", "3 classes",
            "0 to 2", "background",
        ),
        refused(
            "batch", lambda: targets.detection(*BOX)(torch.rand(2, 7, 99)), ValueError, "batch of 1", "for 2", "list"
        ),
        refused("integers", lambda: targets.detection(*BOX)(torch.ones(1, 7, 9).long()), TypeError, "Tensor", SHAPE),
        refused("maps", lambda: targets.detection(*BOX)([torch.rand(1, 7, 9, 9)]), TypeError, "list", SHAPE),
    ],
)  # fmt: skip
def test_a_mistake_is_refused_with_a_sentence(make, error, parts):
    with pytest.raises(error) as refusal:
        make()
    assert_says(refusal, error, parts)


class Dense(nn.Module):
    """A detector like YOLOv8: cells of 4x4 pixels predict a box of 8x8 pixels around them, and two classes."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.classes = nn.Conv2d(8, 2, 1)

    def forward(self, images):
        maps = self.backbone(images)
        scores = self.classes(maps).sigmoid()
        rows, columns = torch.meshgrid(*(torch.arange(side) * 4.0 + 2 for side in maps.shape[2:]), indexing="ij")
        boxes = torch.stack([columns, rows, torch.full_like(rows, 8), torch.full_like(rows, 8)])
        return torch.cat([boxes.expand(len(maps), -1, -1, -1), scores], 1).flatten(2), [maps]


def test_the_map_of_a_box_is_that_of_its_score():
    model, images = Dense(), torch.rand(2, 3, 32, 32)
    # The cells (2, 3) of the first image and (5, 1) of the second, rows first.
    target = targets.detection([[[10, 6, 18, 14]], [[2, 18, 10, 26]]], [[1], [0]])
    explanation = gradcam_fast.explain(model, images, target=target, layer="backbone.1", relu=False)

    def by_hand(output):
        scores = output[0].unflatten(2, (8, 8))
        return torch.stack([scores[0, 5, 2, 3], scores[1, 4, 5, 1]])[:, None]

    expected = gradcam_fast.explain(model, images, target=by_hand, layer="backbone.1", relu=False)
    assert explanation.valid.all()
    assert torch.equal(explanation.score, expected.score) and torch.equal(explanation.heatmap, expected.heatmap)
