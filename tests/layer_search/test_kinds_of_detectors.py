"""Detectors are explained before the boxes and classes they predict, on the level of the box that is asked about."""

import pytest
import torch
from support.dense_heads import AnchorHead, Decoupled, LiteHead, SharedHead
from torch import nn

from gradcam_fast import explain

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
# Anchors of the fine level come first; the last ones are of the coarse level.
FINE, COARSE = 100, -10


def explained(make, target):
    torch.manual_seed(1)
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.9
    with torch.no_grad():  # so that no map is flat
        model.train()(IMAGES)
    return explain(model.eval(), IMAGES, target=target, relu=False)


def value(row, anchor):
    """A number of one anchor in (B,rows,A), alone or first of a tuple."""
    return lambda out: (out[0] if isinstance(out, tuple) else out)[:, row, anchor]


def of_mask(anchor):
    def score(out):
        _, (_, coefficients, prototypes) = out
        return torch.einsum("bk,bkhw->bhw", coefficients[:, :, anchor], prototypes).sigmoid().mean((1, 2))

    return score


def with_bins(way):
    return lambda: Decoupled(bins=8, way=way)


DETECTORS = {
    # Anchors: the one convolution of each level is behind the neck.
    "v5: confidence of the best box of the fine level": (
        AnchorHead, lambda out: (out[0][:, :512, 4:5] * out[0][:, :512, 5:]).amax((1, 2)), "neck.fine",
    ),
    "v5: width of a box": (AnchorHead, lambda out: out[0][:, FINE, 2], "neck.fine"),
    "v5: a class on the coarse level": (AnchorHead, lambda out: out[0][:, COARSE, 6], "neck.coarse"),
    "v5: boxes of two levels": (
        AnchorHead, lambda out: torch.stack([out[0][:, FINE, 5], out[0][:, COARSE, 5]], 1), "neck.stem",
    ),
    # Decoupled heads: each branch ends with two blocks and a convolution.
    "v8: a class on the fine level": (Decoupled, value(5, FINE), "classes.0.1"),
    "v8: a class on the coarse level": (Decoupled, value(5, COARSE), "classes.1.1"),
    "v8: logits before they are decoded": (Decoupled, lambda out: out[1][0][:, -1].mean((1, 2)), "classes.0.1"),
    "v8: a box and its class": (Decoupled, lambda out: out[0][:, 2, COARSE] / 10 + out[0][:, 5, COARSE], "neck.coarse"),
    "v8: all classes everywhere": (Decoupled, lambda out: out[0][:, 4:].sum((1, 2)), "neck.stem"),
    **{
        f"v8: {side} of a box, bins by {way}": (with_bins(way), value(row, anchor), layer)
        for way in ("convolution", "product", "sum", "mean")
        for side, row, anchor, layer in (("x", 0, FINE, "boxes.0.1"), ("height", 3, COARSE, "boxes.1.1"))
    },
    "v26: a class": (lambda: Decoupled(1), value(5, FINE), "classes.0.1"),
    "v26: y of a box": (lambda: Decoupled(1), value(1, COARSE), "boxes.1.1"),
    "masks: a class": (lambda: Decoupled(extra="masks"), value(5, FINE), "classes.0.1"),
    "masks: coefficient": (lambda: Decoupled(extra="masks"), lambda out: out[1][1][:, 2, FINE], "extras.0.1"),
    "masks: prototype": (lambda: Decoupled(extra="masks"), lambda out: out[1][2][:, 2].mean((1, 2)), "prototypes.1"),
    # Coefficients and prototypes together: the last map that both are made of.
    "masks: mask of a fine box": (lambda: Decoupled(extra="masks"), of_mask(FINE), "neck.fine"),
    "masks: mask of a coarse box": (lambda: Decoupled(extra="masks"), of_mask(COARSE), "neck.stem"),
    "poses: a class": (lambda: Decoupled(extra="poses"), value(5, COARSE), "classes.1.1"),
    "poses: x of a joint": (lambda: Decoupled(extra="poses"), value(7, FINE), "extras.0.1"),
    "poses: whether a joint is visible": (lambda: Decoupled(extra="poses"), value(9, COARSE), "extras.1.1"),
    # Towers that run on every level: a name stands for the last one.
    "retinanet: class on the fine level": (SharedHead, lambda out: out["cls_logits"][:, FINE, 1], "neck.fine"),
    "retinanet: class on the coarse level": (SharedHead, lambda out: out["cls_logits"][:, COARSE, 1], "towers.classes"),
    "retinanet: box on the coarse level": (SharedHead, lambda out: out["bbox_regression"][:, COARSE], "towers.boxes"),
    "ssdlite: class on the fine level": (LiteHead, lambda out: out[:, FINE, 1], "classes.0.2"),
    "ssdlite: class on the coarse level": (LiteHead, lambda out: out[:, COARSE, 1], "classes.1.2"),
    "ssdlite: class on both levels": (LiteHead, lambda out: out[:, :, 1].mean(1), "neck.stem"),
}  # fmt: skip


@pytest.mark.parametrize("question", DETECTORS)
def test_detectors_are_explained_before_what_they_predict(question):
    make, score, layer = DETECTORS[question]
    explanation = explained(make, score)
    assert explanation.layer == layer and explanation.valid.all()


@pytest.mark.parametrize("bins", [1, 8])
@pytest.mark.parametrize(("member", "branch"), [(4, "classes"), (1, "boxes")])
def test_boxes_that_the_forward_picks_are_explained_on_their_level(bins, member, branch):
    torch.manual_seed(1)
    model = Decoupled(bins, end_to_end=True)
    explanation = explain(model, IMAGES[:1], target=lambda out: out[0][:, 0, member], relu=False)
    with torch.no_grad():
        scores = torch.cat([level[:, -3:].flatten(2) for level in model(IMAGES[:1])[1]], 2).amax(1)
    level = int(scores.argmax(1) >= 256)
    assert explanation.layer == f"{branch}.{level}.1" and explanation.valid.all()


def test_questions_about_levels_and_branches_do_not_change_each_other():
    torch.manual_seed(1)
    model = Decoupled()
    questions = [question for question in DETECTORS if DETECTORS[question][0] is Decoupled]
    for question in (*questions, *reversed(questions)):
        _, score, layer = DETECTORS[question]
        assert explain(model, IMAGES, target=score, relu=False).layer == layer, question
