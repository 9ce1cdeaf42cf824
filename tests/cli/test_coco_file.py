"""COCO JSON: boxes are found by the photos' paths, and masks come back as they were."""

import json
from pathlib import Path

import numpy
import pytest
from support.refusals import assert_says

from gradcam_fast.cli.coco_file import BoxFile, PhotoRegions, Region, document, run_lengths
from gradcam_fast.exceptions import PhotoError


@pytest.fixture
def box_file(tmp_path):
    """box_file(images, annotations): a file with them."""

    def make(images, annotations):
        path = tmp_path / "boxes.json"
        path.write_text(json.dumps({"images": images, "annotations": annotations}))
        return BoxFile(path)

    return make


def test_boxes_are_those_of_the_photo_whose_path_ends_in_the_name(box_file):
    boxes = box_file(
        [{"id": 3, "file_name": "a.jpg"}, {"id": 4, "file_name": "sub/a.jpg", "width": 50, "height": 40}],
        [
            {"image_id": 3, "bbox": [1, 2, 3, 4]},
            {"image_id": 4, "bbox": [10, 10, 5, 5]},
            {"image_id": 4, "bbox": [0, 0.5, 2, 2]},
            {"image_id": 4, "bbox": [0, 0, 0, 5]},
        ],
    )
    assert boxes.boxes_of(Path("photos/a.jpg"), (50, 40)) == [(1, 2, 4, 6)]
    assert boxes.boxes_of(Path("/x/sub/a.jpg"), (50, 40)) == [(10, 10, 15, 15), (0, 0.5, 2, 2.5)]
    assert boxes.boxes_of(Path("b.jpg"), (50, 40)) == []
    assert Path("a.jpg") in boxes and Path("b.jpg") not in boxes


def test_boxes_of_a_photo_of_another_size_are_refused(box_file):
    boxes = box_file([{"id": 1, "file_name": "a.jpg", "width": 40, "height": 50}], [])
    with pytest.raises(PhotoError, match=r"a\.jpg: has 50 x 40 pixels, but its boxes in boxes\.json are of 40 x 50"):
        boxes.boxes_of(Path("a.jpg"), (50, 40))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is no JSON"),
        ("[]", "has no lists 'images' and 'annotations'"),
        ('{"images": [], "annotations": {}}', "has no lists"),
        ('{"images": [{"id": 1}], "annotations": []}', "an image has no id or file_name"),
        (
            '{"images": [], "annotations": [{"image_id": 7, "bbox": [1, 1, 1, 1]}]}',
            "is of image 7, which is not listed",
        ),
        ('{"images": [], "annotations": [{"image_id": 7, "bbox": [1, 1, 1]}]}', "expected [x, y, width, height]"),
        ('{"images": [], "annotations": [{"image_id": 7, "bbox": [1, 1, 1, NaN]}]}', "expected [x, y, width, height]"),
        ('{"images": [], "annotations": ["box"]}', "an annotation has bbox None"),
    ],
)
def test_other_files_are_refused_in_a_sentence(tmp_path, content, says):
    path = tmp_path / "boxes.json"
    path.write_text(content)
    with pytest.raises(ValueError) as refusal:
        BoxFile(path)
    assert_says(refusal, ValueError, ["boxes.json", says])


def decoded(segmentation):
    height, width = segmentation["size"]
    values = numpy.arange(len(segmentation["counts"])) % 2
    return numpy.repeat(values, segmentation["counts"]).reshape(width, height).T.astype(bool)


@pytest.mark.parametrize("kind", ["nothing", "everything", "random", "first", "last"])
def test_run_lengths_give_the_mask_back(kind):
    mask = numpy.zeros((5, 7), bool)
    if kind == "everything":
        mask[:] = True
    elif kind == "random":
        mask = numpy.random.default_rng(0).random((5, 7)) > 0.5
    elif kind != "nothing":
        mask[(0, 0) if kind == "first" else (-1, -1)] = True
    counts = run_lengths(mask)
    assert sum(counts) == 35
    assert numpy.array_equal(decoded({"size": mask.shape, "counts": counts}), mask)


def test_a_document_has_an_annotation_for_each_region():
    mask = numpy.zeros((4, 6), bool)
    mask[1:3, 2:5] = True
    photos = [
        PhotoRegions(Path("sub/a.png"), (6, 4), [Region(2, (2, 1, 3, 2), 6, 0.75, mask)]),
        PhotoRegions(Path("b.png"), (8, 8), []),
        PhotoRegions(Path("c.png"), (8, 8), [Region(0, (0, 0, 1, 1), 1, float("nan"))]),
    ]
    found = document(photos, ["cat", "dog", "cup"], {"threshold": 0.5})
    assert json.loads(json.dumps(found)) == found
    assert found["images"][0] == {"id": 1, "file_name": "sub/a.png", "width": 6, "height": 4}
    assert [image["id"] for image in found["images"]] == [1, 2, 3]
    first, second = found["annotations"]
    assert (first["image_id"], first["category_id"], first["bbox"], first["area"]) == (1, 2, [2, 1, 3, 2], 6)
    assert first["score"] == 0.75 and numpy.array_equal(decoded(first["segmentation"]), mask)
    assert second["image_id"] == 3 and "score" not in second and "segmentation" not in second
    assert found["categories"] == [{"id": 0, "name": "cat"}, {"id": 2, "name": "cup"}]


def test_what_is_written_can_be_read(tmp_path):
    path = tmp_path / "boxes.json"
    photos = [PhotoRegions(Path("a.png"), (6, 4), [Region(0, (2, 1, 3, 2), 6, 0.5)])]
    path.write_text(json.dumps(document(photos, ["cat"], {})))
    assert BoxFile(path).boxes_of(Path("photos/a.png"), (6, 4)) == [(2, 1, 5, 3)]
