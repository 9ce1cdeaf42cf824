"""Classes by number and by word."""

import pytest

from gradcam_fast.cli.networks.class_words import find_class

NAMES = ["tabby", "tiger cat", "Egyptian cat", "crane", "cattle", "crane", "tabby cat", "lynx, catamount"]


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
            "'cat' may be any of 3 classes: tiger cat (1), Egyptian cat (2), tabby cat (6); give one of these numbers",
        ),
        ("crane", "'crane' may be any of 2 classes: crane (3), crane (5); give one of these numbers"),
        ("tabi", "no class is named 'tabi'; did you mean tabby (0)?"),
        ("zzz", "no class is named 'zzz'; give a number, or a word of its name"),
        ("", "no class is named ''; give a number, or a word of its name"),
        ("8", "class 8 is out of range; this network has 8, from 0 to 7"),
        ("-1", "class -1 is out of range; this network has 8, from 0 to 7"),
    ],
)
def test_no_class_or_several_are_told_with_their_numbers(wanted, message):
    with pytest.raises(ValueError) as caught:
        find_class(wanted, NAMES)
    assert str(caught.value) == message


def test_of_many_matches_the_first_are_shown():
    with pytest.raises(ValueError, match=r"any of 100 classes: dog 0 \(0\), .*, dog 7 \(7\) and 92 more; give"):
        find_class("dog", [f"dog {number}" for number in range(100)])
