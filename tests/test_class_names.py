"""Class names come from text or JSON, one for each output; a class is found by its number or by a part of its name."""

import json

import pytest
from support.refusals import assert_says

from gradcam_fast.class_names import find_class, imagenet_class_names, read_class_names

NAMES = ["tabby", "tiger cat", "Egyptian cat", "crane", "cattle", "crane", "tabby cat", "lynx, catamount"]


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
        ("names.json", "3", ["it holds 3", "neither a list nor an object"]),
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


@pytest.mark.parametrize(
    ("wanted", "number"),
    [("0", 0), ("7", 7), ("tabby", 0), ("TABBY CAT", 6), ("egyptian", 2), ("tiger", 1), ("lynx", 7), ("catam", 7)],
)
def test_a_number_a_name_or_a_word_of_one_name_is_found(wanted, number):
    assert find_class(wanted, NAMES) == number


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            "cat",
            "'cat' matches 3 classes: tiger cat (1), Egyptian cat (2), tabby cat (6); give the number of one",
        ),
        ("crane", "'crane' matches 2 classes: crane (3), crane (5); give the number of one"),
        ("tabi", "no class is named 'tabi'; did you mean tabby (0)?"),
        ("zzz", "no class is named 'zzz'; give the number of a class, or a part of its name"),
        ("", "no class is named ''; give the number of a class, or a part of its name"),
        ("8", "class 8 is out of range; this network has the classes 0 to 7"),
        ("-1", "class -1 is out of range; this network has the classes 0 to 7"),
    ],
)
def test_no_class_or_several_are_told_with_their_numbers(wanted, message):
    with pytest.raises(ValueError) as caught:
        find_class(wanted, NAMES)
    assert str(caught.value) == message


def test_of_many_matches_the_first_are_shown():
    with pytest.raises(ValueError, match=r"matches 100 classes: dog 0 \(0\), .*, dog 7 \(7\) and 92 more; give"):
        find_class("dog", [f"dog {number}" for number in range(100)])
