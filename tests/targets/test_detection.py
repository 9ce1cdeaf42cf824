"""`targets.detection` on torchvision's detectors with random weights, against the scores of their own predictions."""

import pytest
import torch
from support.tolerances import SAME_INPUTS
from torch import nn

import gradcam_fast
from gradcam_fast import targets

detection = pytest.importorskip("torchvision.models.detection")
TOLERANCE = SAME_INPUTS[torch.float32]
UNTRAINED = {"weights": None, "weights_backbone": None, "num_classes": 4}


def photos():
    return torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))


def calibrated(model, heads, std):
    """Batch-norm statistics and heads with which random weights detect different things in different places."""
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    model.backbone.train()
    with torch.no_grad():
        model.backbone(torch.rand(2, 3, 192, 192))
    for head in heads:
        nn.init.normal_(head.weight, std=std)
    return model.eval()


def faster_rcnn(**choices):
    sizes = {"min_size": 96, "max_size": 128, "box_score_thresh": 0.0, "box_detections_per_img": 10}
    model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(**UNTRAINED, **sizes | choices)
    for moved in (model.rpn.head.bbox_pred, model.roi_heads.box_predictor.bbox_pred):
        nn.init.zeros_(moved.weight)  # the boxes are the anchors
    return calibrated(model, [model.roi_heads.box_predictor.cls_score], 0.001)


def ssdlite():
    model = detection.ssdlite320_mobilenet_v3_large(**UNTRAINED, score_thresh=0.0, detections_per_img=10)
    return calibrated(model, [head[-1] for head in model.head.classification_head.module_list], 0.02)


DETECTORS = {"faster_rcnn": (faster_rcnn, "backbone"), "ssdlite": (ssdlite, "backbone.features.1")}


@pytest.fixture(scope="module", params=DETECTORS)
def detector(request):
    torch.manual_seed(0)
    make, layer = DETECTORS[request.param]
    model = make()
    with torch.no_grad():
        return model, layer, model(photos())


def score_of_prediction(k):
    return lambda output: torch.stack([image["scores"][k] for image in output])


def explain(detector, target, **options):
    model, layer, _ = detector
    return gradcam_fast.explain(model, photos(), target=target, **{"layer": layer} | options)


def test_the_models_own_boxes_have_the_scores_it_gave_them(detector):
    predictions = detector[2]
    boxes, labels, scores = ([image[key][2:4] for image in predictions] for key in ("boxes", "labels", "scores"))
    target = targets.detection(boxes, labels)
    explanation = explain(detector, target)
    assert torch.equal(explanation.score, torch.stack(scores))
    assert explanation.valid.all()
    for column, k in enumerate((2, 3)):
        by_hand = explain(detector, score_of_prediction(k))
        torch.testing.assert_close(explanation.heatmap[:, column], by_hand.heatmap, rtol=0, atol=TOLERANCE)


def test_a_box_without_a_matching_prediction_has_no_map_and_changes_no_other(detector):
    boxes, labels = ([image[key][:1] for image in detector[2]] for key in ("boxes", "labels"))
    alone = explain(detector, targets.detection(boxes, labels))
    elsewhere, unknown = torch.tensor([[500.0, 500.0, 600.0, 600.0]]), torch.tensor([77])
    boxes = [torch.cat([box, elsewhere, box]) for box in boxes]
    labels = [torch.cat([label, label, unknown]) for label in labels]
    explanation = explain(detector, targets.detection(boxes, labels))
    assert explanation.valid.tolist() == [[True, False, False]] * 2
    assert not explanation.score[:, 1:].any() and not explanation.heatmap[:, 1:].any()
    assert torch.equal(explanation.score[:, :1], alone.score)
    torch.testing.assert_close(explanation.heatmap[:, :1], alone.heatmap, rtol=0, atol=TOLERANCE)


def test_an_image_with_fewer_boxes_has_no_map_for_those_it_lacks(detector):
    one, other = detector[2]
    target = targets.detection([one["boxes"][:2], other["boxes"][:1]], [one["labels"][:2], other["labels"][:1]])
    explanation = explain(detector, target)
    assert explanation.valid.tolist() == [[True, True], [True, False]]
    assert explanation.score.flatten().tolist() == [*one["scores"][:2].tolist(), other["scores"][0].item(), 0]


def test_without_any_prediction_there_is_no_map_and_no_error():
    torch.manual_seed(0)
    model = faster_rcnn(box_score_thresh=1.0)
    target = targets.detection([[[0, 0, 50, 50]]] * 2, [[1]] * 2)
    with pytest.warns(UserWarning, match="zero everywhere"):
        explanation = gradcam_fast.explain(model, photos(), target=target, layer="backbone")
    assert [len(image["scores"]) for image in explanation.logits] == [0, 0]
    assert explanation.score.tolist() == [[0], [0]] and not explanation.valid.any() and not explanation.heatmap.any()


def test_for_a_box_without_a_matching_prediction_a_layer_is_found_too(detector):
    with pytest.warns(UserWarning, match="zero everywhere"):
        explanation = explain(detector, targets.detection([[[1, 1, 2, 2]]] * 2, [[1]] * 2, min_iou=0.99), layer=None)
    assert not explanation.score.any() and not explanation.valid.any() and explanation.layer


def test_the_layer_is_found_for_a_box_too(detector):
    boxes, labels = ([image[key][:1] for image in detector[2]] for key in ("boxes", "labels"))
    target = targets.detection(boxes, labels)
    explanation = explain(detector, target, layer=None)
    named = explain(detector, target, layer=explanation.layer)
    assert explanation.valid.all() and torch.equal(explanation.heatmap, named.heatmap)


def prediction_of(boxes, labels):
    scores = torch.linspace(0.9, 0.5, len(boxes), requires_grad=True)
    return {"boxes": torch.tensor(boxes, requires_grad=True), "labels": torch.tensor(labels), "scores": scores}


def test_a_prediction_of_another_label_does_not_count_even_if_it_overlaps_more():
    prediction = prediction_of([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0]], [1, 2])
    assert targets.detection([[0, 0, 10, 10]], [2])([prediction]).tolist() == [[0.5]]


def test_the_prediction_that_overlaps_most_counts_and_not_the_one_of_the_highest_score():
    prediction = prediction_of([[0.0, 0.0, 10.0, 8.0], [0.0, 0.0, 10.0, 9.0], [0.0, 0.0, 10.0, 6.0]], [1, 1, 1])
    score = targets.detection([[0, 0, 10, 10], [0, 0, 10, 6.5]], [1, 1])([prediction])
    torch.testing.assert_close(score, torch.tensor([[0.7, 0.5]]))
    score[0, 0].backward()
    assert prediction["scores"].grad.tolist() == [0, 1, 0] and prediction["boxes"].grad is None


@pytest.mark.parametrize(("least", "expected"), [(0.25, 0.9), (0.251, 0.0)])
def test_the_overlap_is_intersection_over_union(least, expected):
    prediction = prediction_of([[0.0, 0.0, 5.0, 4.0]], [1])
    score = targets.detection([[3, 0, 8, 4]], [1], min_iou=least)([prediction])  # 8 of 20 + 20 - 8
    assert score.item() == pytest.approx(expected)


def test_boxes_apart_in_both_directions_do_not_overlap():
    prediction = prediction_of([[0.0, 0.0, 1.0, 1.0]], [1])
    assert targets.detection([[2, 2, 3, 3]], [1])([prediction]).tolist() == [[0]]


def test_boxes_without_area_and_of_nan_match_nothing():
    empty, unknown = [0.0, 0.0, 0.0, 0.0], [float("nan")] * 4
    prediction = prediction_of([empty, unknown, [0.0, 0.0, float("inf"), 1.0]], [1, 1, 1])
    score = targets.detection([empty, unknown, [0, 0, 9, 9]], [1, 1, 1])([prediction])
    score.sum().backward()
    assert score.tolist() == [[0, 0, 0]] and not prediction["scores"].grad.any()


def test_a_single_image_needs_no_list():
    prediction = prediction_of([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]], [3, 4])
    alone = targets.detection(prediction["boxes"], prediction["labels"])([prediction])
    assert torch.equal(alone, targets.detection([prediction["boxes"]], [prediction["labels"]])([prediction]))
    assert torch.equal(alone, prediction["scores"].unsqueeze(0))
