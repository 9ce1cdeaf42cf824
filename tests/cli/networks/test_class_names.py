"""Names of classes come from text or JSON, keep their numbers, and are as many as the network has outputs."""

import json

import pytest
from support.refusals import assert_says

from gradcam_fast.cli.networks.class_names import imagenet_class_names, read_class_names


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "\ufeffcat\r\n  dog\r\n\r\nköter\r\n\r\n"),
        ("names.json", json.dumps(["cat", "dog", "", "köter"])),
        ("names.json", json.dumps({"3": "köter", "0": "cat", "1": "dog", "2": ""})),
        ("keras.json", json.dumps({"0": ["n1", "cat"], "1": ["n2", "dog"], "2": ["n3", ""], "3": ["n4", "köter"]})),
    ],
)
def test_names_come_as_lines_or_json_and_keep_their_numbers(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_class_names(tmp_path / name, 4) == ("cat", "dog", "class 2", "köter")


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("names.txt", "cat\ndog\n", ["names 2 classes", "the network has 3 outputs"]),
        ("names.json", "[1, 2", ["cannot be read", "one name per line"]),
        ("names.json", '{"1": "a", "2": "b", "3": "c"}', ["not the numbers from 0 to 2"]),
        ("names.json", '{"cat": 0}', ["cannot be read", "'cat'"]),
        ("names.json", "3", ["it holds a int"]),
        ("names.txt", b"\xff\xfe\xff", ["cannot be read"]),
    ],
)
def test_names_that_do_not_fit_are_refused(tmp_path, name, content, parts):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as refusal:
        read_class_names(tmp_path / name, 3)
    assert_says(refusal, ValueError, [str(tmp_path / name), *parts])


def test_the_classes_of_imagenet_are_a_thousand():
    names = imagenet_class_names()
    assert len(names) == 1000 and names[0] == "tench" and names[999] == "toilet tissue"
