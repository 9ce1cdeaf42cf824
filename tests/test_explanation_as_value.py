"""An explanation is a value: it moves, is indexed, is written and read, and names its classes."""

import json
import math
import zipfile
from dataclasses import fields, replace

import numpy
import pytest
import torch
from PIL import Image
from support.networks import ConvNet

from gradcam_fast import Explainer, Explanation, Preprocess, explain

NAMES = ("cat", "dog", "owl", "fox", "elk")
PREPROCESS = Preprocess(16, crop=0.8)


@pytest.fixture
def explanation():
    """Four photos of different sizes, two classes each."""
    photos = [Image.effect_noise(size, 90).convert("RGB") for size in ((30, 20), (20, 30), (25, 25), (40, 20))]
    return Explainer(ConvNet(), layer="features.3", preprocess=PREPROCESS, names=NAMES)(photos, topk=2)


def assert_same(one, other):
    for field in fields(Explanation):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, torch.Tensor):
            assert left.dtype == right.dtype and torch.equal(left, right), field.name
        elif field.name == "photos" and left is not None:
            assert all(map(torch.equal, left, right)) and len(left) == len(right)
        else:
            assert left == right, field.name


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_what_is_written_is_read_again(explanation, tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".npz":
        explanation.save(path)
        assert_same(Explanation.load(path), explanation)
    else:
        torch.save(explanation, path)
        assert_same(torch.load(path, weights_only=True), explanation)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_types_that_numpy_does_not_have_are_read_again_too(images, tmp_path, dtype):
    explanation = explain(ConvNet().to(dtype), images.to(dtype), layer="features.3")
    explanation.save(tmp_path / "a.npz")
    assert_same(Explanation.load(tmp_path / "a.npz"), explanation)
    callable_target = explain(ConvNet(), images, target=lambda out: out[:, 0], layer=["features.3", "features.0"])
    callable_target.save(tmp_path / "b.npz")
    assert_same(Explanation.load(tmp_path / "b.npz"), callable_target)


def test_numpy_alone_reads_the_arrays(explanation, tmp_path):
    explanation.save(tmp_path / "a.npz")
    with numpy.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert numpy.array_equal(file["heatmap"], explanation.heatmap.numpy())
        assert numpy.array_equal(file["photo_3"], explanation.photos[3].permute(1, 2, 0).numpy())


def test_files_that_hold_no_explanation_are_refused(tmp_path):
    numpy.savez(tmp_path / "other.npz", heatmap=numpy.zeros(3))
    (tmp_path / "text.npz").write_text("a text")
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as file:
        file.writestr("settings.npy", b"nothing")
    for name in ("other.npz", "text.npz", "zip.npz"):
        with pytest.raises(ValueError, match=f"{name} holds no explanation"):
            Explanation.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        Explanation.load(tmp_path / "nowhere.npz")


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays, settings: settings.clear(),
        lambda arrays, settings: settings.update(dtypes=[]),
        lambda arrays, settings: settings.update(dtypes={"heatmap": "float32"}),
        lambda arrays, settings: settings["dtypes"].update(heatmap="load"),
        lambda arrays, settings: settings["dtypes"].update(heatmap=7),
        lambda arrays, settings: settings.update(layer=7),
        lambda arrays, settings: settings.update(names=7),
        lambda arrays, settings: settings.update(photos=99),
        lambda arrays, settings: arrays.pop("heatmap"),
        lambda arrays, settings: arrays.update(heatmap=numpy.array(["text"])),
        lambda arrays, settings: arrays.update(heatmap=numpy.array([b"bytes"])),
    ],
)
def test_a_file_with_other_settings_or_arrays_is_refused(explanation, tmp_path, change):
    explanation.save(path := tmp_path / "a.npz")
    with numpy.load(path) as file:
        arrays = dict(file)
    settings = json.loads(str(arrays["settings"]))
    change(arrays, settings)
    numpy.savez(path, **{**arrays, "settings": json.dumps(settings)})
    with pytest.raises(ValueError, match=r"a.npz holds no explanation"):
        Explanation.load(path)


def test_logits_that_are_no_tensor_go_into_another_file(explanation, tmp_path):
    several = replace(explanation, logits=[explanation.logits])
    with pytest.raises(TypeError, match=r"the logits are a list, .*torch.save"):
        several.save(tmp_path / "a.npz")


def test_it_moves_to_a_device_and_back(explanation):
    moved = explanation.to("meta")
    tensors = [moved.heatmap, moved.logits, moved.target, moved.score, moved.raw_min, moved.valid, moved.reason_codes]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.photos is explanation.photos and moved.boxes.device.type == "cpu"
    assert_same(explanation.cpu(), explanation)
    nested = replace(explanation, logits={"out": [explanation.logits], "aux": 3})
    assert nested.to("meta").logits["out"][0].device.type == "meta"


@pytest.mark.parametrize(
    ("index", "images"),
    [
        (1, [1]), (-1, [3]), (numpy.int64(2), [2]), (slice(1, 3), [1, 2]), ([3, 0], [3, 0]), ([], []),
        (torch.tensor([2, 2]), [2, 2]), (torch.tensor([True, False, False, True]), [0, 3]), ([False] * 3 + [True], [3]),
    ],
)  # fmt: skip
def test_images_are_chosen_by_index_slice_list_and_mask(explanation, index, images):
    chosen = explanation[index]
    assert len(chosen) == len(images) and chosen.heatmap.shape == (len(images), 2, 16, 16)
    for place, image in enumerate(images):
        assert torch.equal(chosen.heatmap[place], explanation.heatmap[image])
        assert torch.equal(chosen.logits[place], explanation.logits[image])
        assert torch.equal(chosen.boxes[place], explanation.boxes[image])
        assert chosen.photos[place] is explanation.photos[image]
        assert chosen.reason[place] == explanation.reason[image]
    assert chosen.names == NAMES and chosen.layer == "features.3"


def test_images_that_are_not_there_are_refused(explanation):
    for index in (4, -5, [0, 4], [True, False]):
        with pytest.raises(IndexError):
            explanation[index]


def test_iterating_gives_a_batch_of_one_for_each_image(explanation):
    parts = list(explanation)
    assert [len(part) for part in parts] == [1] * 4
    assert torch.equal(torch.cat([part.heatmap for part in parts]), explanation.heatmap)
    assert explanation[[]] and not len(explanation[[]])


def test_the_list_that_a_detector_returns_is_chosen_with_the_images(explanation):
    detections = [{"boxes": torch.rand(count, 4)} for count in range(4)]
    chosen = replace(explanation, logits=detections)[[2, 0]]
    assert chosen.logits == [detections[2], detections[0]]


def test_the_best_classes_have_names_probabilities_and_scores(explanation):
    told = replace(explanation, probability_rule="softmax")
    for image, predictions in enumerate(told.top(3)):
        order = told.logits[image].argsort(descending=True)[:3].tolist()
        assert [prediction.index for prediction in predictions] == order
        assert [prediction.name for prediction in predictions] == [NAMES[index] for index in order]
        expected = told.logits[image].softmax(0)[order].tolist()
        assert [prediction.probability for prediction in predictions] == pytest.approx(expected)
        assert [prediction.score for prediction in predictions] == told.logits[image, order].tolist()
    assert all(math.isnan(prediction.probability) for prediction in explanation.top()[0])
    assert len(explanation.top(99)[0]) == 5
    assert replace(explanation, names=None).top(1)[0][0].name == f"class {explanation.target[0, 0]}"


def test_where_there_are_no_classes_there_are_no_best_ones(explanation):
    with pytest.raises(ValueError, match="the target is a callable"):
        replace(explanation, target=None).top()
    with pytest.raises(ValueError, match="k=0 asks for no class"):
        explanation.top(0)
