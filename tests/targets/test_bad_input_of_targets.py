"""Wrong arguments and outputs of the ready targets: per line a mistake, its exception and parts of the message.

Arguments are checked when the target is made, the rest when it is called with the model's output.
"""

import numpy
import pytest
import torch
from support.refusals import assert_says

from gradcam_fast import targets

DENSE, ROWS = torch.randn(2, 3, 4, 4), torch.randn(2, 3)
BOX = [[0.0, 0.0, 2.0, 2.0]]
PREDICTION = {"boxes": torch.rand(5, 4), "labels": torch.ones(5, dtype=torch.long), "scores": torch.rand(5)}


def refused(make, error, *parts):
    return pytest.param(make, error, parts, id=f"{make.__code__.co_names[1]}-{parts[0]}")


ARGUMENTS = [
    refused(lambda: targets.segmentation(1.0), TypeError, "category=1.0", "float", "integer"),
    refused(lambda: targets.segmentation("cat"), TypeError, "category='cat'", "str", "integer"),
    refused(lambda: targets.segmentation(True), TypeError, "category=True", "bool", "integer"),
    refused(lambda: targets.segmentation([]), TypeError, "category=[]", "list", "integers"),
    refused(lambda: targets.segmentation([0, 1.5]), TypeError, "category=[0, 1.5]", "integers"),
    refused(lambda: targets.segmentation(torch.tensor(1)), TypeError, "category=tensor(1)", "Tensor", "integer"),
    refused(lambda: targets.segmentation([0, -1]), ValueError, "category -1", "negative", "from 0"),
    refused(lambda: targets.segmentation(1, torch.zeros(4, 4)), TypeError, "mask", "float32", "(4, 4)", "booleans"),
    refused(lambda: targets.segmentation(1, torch.ones(4, 4).long()), TypeError, "mask", "int64", "labels == 7"),
    refused(lambda: targets.segmentation(1, torch.zeros(0, 4) > 1), TypeError, "mask", "(0, 4)", "(B,H,W)"),
    refused(lambda: targets.segmentation(1, "mask.png"), TypeError, "mask", "str", "booleans"),
    refused(lambda: targets.similarity(torch.ones(3).long()), TypeError, "embedding", "int64", "floating", "(K,D)"),
    refused(lambda: targets.similarity(torch.ones(())), TypeError, "embedding", "shape ()", "(D,)"),
    refused(lambda: targets.similarity(torch.ones(1, 1, 1, 3)), TypeError, "embedding", "(1, 1, 1, 3)", "(B,K,D)"),
    refused(lambda: targets.similarity(torch.ones(0, 3)), TypeError, "embedding", "(0, 3)", "(K,D)"),
    refused(lambda: targets.similarity(None), TypeError, "embedding", "NoneType", "floating"),
    refused(lambda: targets.regression("age"), TypeError, "index='age'", "str", "integer"),
    refused(lambda: targets.regression([]), TypeError, "index=[]", "list", "integers"),
    refused(lambda: targets.regression(-1), ValueError, "index -1", "negative", "from 0"),
    refused(lambda: targets.probability(None), TypeError, "category=None", "NoneType", "integer"),
    refused(lambda: targets.probability([1, -2]), ValueError, "category -2", "negative", "from 0"),
    refused(lambda: targets.binary(1), TypeError, "positive=1", "int", "True, False", "None"),
    refused(lambda: targets.binary("yes"), TypeError, "positive='yes'", "str", "True"),
    refused(lambda: targets.binary(threshold="half"), TypeError, "threshold='half'", "str", "0.5"),
    refused(lambda: targets.binary(threshold=True), TypeError, "threshold=True", "bool", "number"),
    refused(lambda: targets.finer("cat"), TypeError, "category='cat'", "str", "integer"),
    refused(lambda: targets.finer(-1), ValueError, "category -1", "negative", "from 0"),
    refused(lambda: targets.finer(1, 0), ValueError, "rivals=0", "at least 1"),
    refused(lambda: targets.finer(1, 1.5), TypeError, "rivals=1.5", "float", "integer"),
    refused(lambda: targets.finer(1, []), TypeError, "rivals=[]", "list", "integers"),
    refused(lambda: targets.finer(1, [-3]), ValueError, "rivals -3", "negative", "from 0"),
    refused(lambda: targets.finer(1, [0, 1]), ValueError, "rivals=[0, 1]", "class 1", "other classes"),
    refused(lambda: targets.finer([1, 2], [0, 2]), ValueError, "rivals=[0, 2]", "[1, 2]", "other classes"),
    refused(lambda: targets.finer(1, alpha="0.6"), TypeError, "alpha='0.6'", "str", "number"),
    refused(lambda: targets.finer(1, weights="max"), ValueError, "weights='max'", "'mean'", "'softmax'"),
    refused(lambda: targets.detection(3, 1), TypeError, "boxes", "int", "(K,4)"),
    refused(lambda: targets.detection(BOX, 1), TypeError, "labels", "int", "(K,)"),
    refused(lambda: targets.detection([["a"] * 4], [1]), TypeError, "boxes", "list", "(K,4)"),
    refused(lambda: targets.detection(BOX, [1, 1]), ValueError, "[(1, 4)]", "[(2,)]", "(K,4)"),
    refused(lambda: targets.detection(BOX[0], [1]), ValueError, "boxes", "(K,4)", "labels"),
    refused(lambda: targets.detection([[0.0, 0.0, 2.0]], [1]), ValueError, "[(1, 3)]", "(K,4)"),
    refused(lambda: targets.detection([BOX, BOX], [1, 1]), ValueError, "boxes", "image by image", "(K,4)"),
    refused(lambda: targets.detection(torch.zeros(0, 4), []), ValueError, "boxes", "[]", "(K,4)"),
    refused(lambda: targets.detection([torch.zeros(0, 4)], [torch.zeros(0).long()]), ValueError, "[(0, 4)]", "(K,4)"),
    refused(lambda: targets.detection(BOX, [1.0]), TypeError, "labels", "float32", "integer"),
    refused(lambda: targets.detection(BOX, [True]), TypeError, "labels", "bool", "integer"),
    refused(lambda: targets.detection([[5, 5, 2, 2]], [1]), ValueError, "box", "x2 < x1", "x1, y1, x2, y2", "width"),
    refused(lambda: targets.detection(BOX, [1], min_iou=0), ValueError, "min_iou=0", "(0,1]", "0.5"),
    refused(lambda: targets.detection(BOX, [1], min_iou=50), ValueError, "min_iou=50", "(0,1]", "0.5"),
]

OUTPUTS = [
    refused(lambda: targets.segmentation(3)(DENSE), ValueError, "category 3", "out of range", "0 to 2"),
    refused(lambda: targets.segmentation(0)(ROWS), ValueError, "segmentation", "(2, 3)", "(B,C,h,w)", "output="),
    refused(lambda: targets.segmentation(0)(DENSE.long()), TypeError, "int64", "floating", "output="),
    refused(lambda: targets.segmentation(0)({"a": DENSE, "b": DENSE}), TypeError, "dict", "'a'", "output="),
    refused(lambda: targets.segmentation(0, [True])(DENSE), ValueError, "mask", "(1,)", "(4, 4)", "(H,W)"),
    refused(
        lambda: targets.segmentation(0, numpy.ones((3, 4, 4), bool))(DENSE), ValueError, "mask", "(3, 4, 4)", "(2,"
    ),
    refused(lambda: targets.segmentation([0, 1], DENSE > 0)(DENSE), ValueError, "mask", "(2, 3, 4, 4)", "(2,2,H,W)"),
    refused(lambda: targets.similarity(torch.ones(4))(ROWS), ValueError, "embedding", "(4,)", "(2, 3)", "(K,3)"),
    refused(lambda: targets.similarity(torch.ones(3, 1, 3))(ROWS), ValueError, "embedding", "(3, 1, 3)", "(2,K,3)"),
    refused(lambda: targets.similarity(torch.ones(3))(DENSE), ValueError, "(2, 3, 4, 4)", "(B,N)", "output="),
    refused(lambda: targets.regression()(ROWS), ValueError, "3 numbers", "index="),
    refused(lambda: targets.regression(3)(ROWS), ValueError, "index 3", "out of range", "0 to 2"),
    refused(lambda: targets.probability(3)(ROWS), ValueError, "category 3", "out of range", "0 to 2"),
    refused(lambda: targets.probability(0)(ROWS[:, :1]), ValueError, "one logit", "target=None", "sigmoid"),
    refused(lambda: targets.binary()(ROWS), ValueError, "3 logits", "target=class", "lambda out"),
    refused(lambda: targets.binary()(ROWS[:, :1].long()), TypeError, "int64", "floating", "output="),
    refused(lambda: targets.binary()(DENSE[:, :1]), ValueError, "(2, 1, 4, 4)", "(B,N)", "output="),
    refused(lambda: targets.finer()(ROWS[:, :1]), ValueError, "one logit", "rivals", "target=None"),
    refused(lambda: targets.finer(3)(ROWS), ValueError, "category 3", "out of range", "0 to 2"),
    refused(lambda: targets.finer(0, [1, 5])(ROWS), ValueError, "rivals 5", "out of range", "0 to 2"),
    refused(lambda: targets.finer()(DENSE), ValueError, "(2, 3, 4, 4)", "(B,N)", "output="),
    refused(lambda: targets.detection(BOX, [1])(ROWS), TypeError, "detection", "Tensor", "boxes", "eval", "output="),
    refused(lambda: targets.detection(BOX, [1])({"loss": ROWS.sum()}), TypeError, "detection", "dict", "eval"),
    refused(lambda: targets.detection(BOX, [1])([{"boxes": ROWS}]), TypeError, "detection", "list", "scores"),
    refused(lambda: targets.detection(BOX, [1])([PREDICTION] * 2), ValueError, "batch of 1", "2", "list"),
]


@pytest.mark.parametrize(("make", "error", "parts"), ARGUMENTS + OUTPUTS)
def test_a_mistake_is_refused_with_a_sentence(make, error, parts):
    with pytest.raises(error) as refusal:
        make()
    assert_says(refusal, error, parts)
