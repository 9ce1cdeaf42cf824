"""Objects are drawn as boxes, regions outlined, on the photo where they are, whatever the network was given."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from support.drawn import pictures_in, texts_in
from torch import nn

import gradcam_fast
from gradcam_fast import Explainer, Explanation, Preprocess, targets
from gradcam_fast.visual import figures
from gradcam_fast.visual.figures.marks import with_box, with_outline

NAMES = ["ground", "cat", "dog"]


class Detector(nn.Module):
    """A YOLO head of two predictions of three classes, whose boxes do not depend on the image."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, images):
        scores = self.conv(images).mean((2, 3))[:, :, None].sigmoid().expand(-1, -1, 2)
        boxes = torch.tensor([[16.0, 40.0], [16.0, 30.0], [8.0, 12.0], [8.0, 20.0]])
        return torch.cat([boxes.expand(len(images), -1, -1), scores], 1)


class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))

    def forward(self, images):
        return {"out": self.net(images)}


PREPROCESS = Preprocess(64, crop=0.8)
SIZE = (400, 300)


def on_photo(box):
    """A box of the input, 64 x 64, in pixels of the photo."""
    left, top, right, bottom = PREPROCESS.box(SIZE)
    x, y = (right - left) / 64, (bottom - top) / 64
    return left + box[0] * x, top + box[1] * y, left + box[2] * x, top + box[3] * y


def white_edges(picture):
    """Where the white line is: left, top, right, bottom of its middle."""
    rows, columns = (picture == 255).all(0).nonzero().T
    return columns.min() + 1, rows.min() + 1, columns.max(), rows.max()


@pytest.fixture
def photo():
    return Image.new("RGB", SIZE, (90, 90, 90))


def detection_of(photos):
    boxes, labels = [[12, 12, 20, 20], [34, 20, 46, 40]], [1, 2]
    target = targets.detection([boxes] * len(photos), [labels] * len(photos), head="yolov8")
    return Explainer(Detector(), preprocess=PREPROCESS, names=NAMES)(photos, target)


def test_each_object_is_drawn_in_its_own_row_with_its_name(photo, tmp_path):
    explanation = detection_of([photo])
    figure = figures.explained(None, explanation)
    assert [text.split(",")[0] for text in texts_in(figure)[3:5]] == ["cat (1)", "dog (2)"]
    pictures = pictures_in(figure, tmp_path / "a.png")
    for row, box in enumerate(([12, 12, 20, 20], [34, 20, 46, 40])):
        scale = pictures[0].shape[2] / SIZE[0]
        expected = [edge * scale for edge in on_photo(box)]
        for picture in (pictures[3 * row], pictures[3 * row + 2]):
            assert [float(edge) for edge in white_edges(picture)] == pytest.approx(expected, abs=1.01)


def test_a_region_is_outlined_where_it_is(photo, tmp_path):
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[8:16, 10:20] = True  # of half the input's resolution
    explainer = Explainer(Segmenter(), preprocess=PREPROCESS, names=NAMES)
    explanation = explainer(photo, targets.segmentation(2, mask=mask))
    assert figures.class_titles(explanation)[0].startswith("dog (2), score ")
    shown = pictures_in(figures.explained(None, explanation), tmp_path / "a.png")[0]
    expected = [edge * shown.shape[2] / SIZE[0] for edge in on_photo((20, 16, 40, 32))]
    assert [float(edge) for edge in white_edges(shown)] == pytest.approx(expected, abs=2)


def test_the_summary_has_the_marks_too_and_files_and_indices_keep_them(photo, tmp_path):
    explanation = detection_of([photo, photo])
    assert explanation[1].subject["objects"].shape == (1, 2, 4)
    explanation.save(tmp_path / "a.npz")
    assert torch.equal(Explanation.load(tmp_path / "a.npz").subject["classes"], explanation.subject["classes"])
    tile = pictures_in(figures.summary(explanation), tmp_path / "a.png")[0]
    assert (tile == 255).all(0).any()
    without = replace(explanation, subject=None)
    assert not (pictures_in(figures.summary(without), tmp_path / "b.png")[0] == 255).all(0).any()


def test_classes_of_probabilities_and_finer_targets_are_named_and_of_other_callables_numbered():
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.rand(2, 3, 8, 8)
    for target in (targets.probability([2, 0]), targets.finer([2, 0], rivals=1)):
        explanation = gradcam_fast.explain(net, images, target=target, names=NAMES)
        assert [title.split(",")[0] for title in figures.class_titles(explanation)] == ["dog (2)", "ground (0)"]
    explanation = gradcam_fast.explain(net, images, target=lambda out: out[:, :2], names=NAMES)
    assert explanation.subject is None and figures.class_titles(explanation)[1].startswith("target 1, score")


def test_marks_at_and_beyond_the_edge_are_cut_off():
    gray = torch.full((3, 10, 12), 90, dtype=torch.uint8)
    drawn = with_box(gray, (-5, 2, 6, 30))
    assert (drawn[0, :, 5:7] == 255)[3:].all() and not (drawn[0, :, 8:] == 255).any()
    assert torch.equal(with_box(gray, (-9, -9, 30, 30)), gray)
    nothing = torch.zeros(10, 12, dtype=torch.bool)
    assert torch.equal(with_outline(gray, nothing), gray) and torch.equal(with_outline(gray, ~nothing), gray)
