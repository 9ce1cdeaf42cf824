"""Names of classes instead of indices: by a list or dict of names, or by those that the model has."""

from types import SimpleNamespace

import pytest
import torch
from support.networks import ConvNet
from support.refusals import assert_says

import gradcam_fast
from gradcam_fast import targets

LAYER = "features.3"
NAMES = ["tabby, tabby cat", "tiger cat", "lynx, catamount", "crane", "crane"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("tabby", 0),
        ("Tabby Cat", 0),
        (" lynx, catamount ", 2),
        (["lynx", "tabby"], [2, 0]),
        (("lynx", "tabby"), [2, 0]),
        ([["tabby", "lynx"]], [[0, 2]]),
    ],
)
def test_names_become_indices_in_the_same_shape(wanted, expected):
    assert targets.named(wanted, NAMES) == expected


def test_a_whole_name_comes_before_a_synonym():
    assert targets.named("lynx", ["cat, lynx", "lynx"]) == 1


@pytest.mark.parametrize("names", [{0: "cat", 7: "dog"}, {"0": "cat", "7": "dog"}])
def test_a_dict_says_the_index_of_each_name(names):
    assert targets.named("dog", names) == 7


@pytest.mark.parametrize(
    ("wanted", "names", "error", "parts"),
    [
        ("taby", NAMES, ValueError, ["'taby'", "did you mean 'tabby, tabby cat'?"]),
        ("cat", NAMES, ValueError, ["'cat'", "'tabby, tabby cat'", "'tiger cat'"]),
        ("zzzz", NAMES, ValueError, ["'zzzz'", "5 classes", "'tiger cat'"]),
        ("", NAMES, ValueError, ["''", "5 classes"]),
        ("crane", NAMES, ValueError, ["'crane'", "3, 4", "index"]),
        (["lynx", 3], NAMES, TypeError, ["3", "int", "name"]),
        ("lynx", "lynx", TypeError, ["names='lynx'", "str", "list"]),
        ("lynx", ["lynx", None], TypeError, ["None", "class 1", "strings"]),
    ],
)
def test_a_name_that_is_not_one_class_is_refused(wanted, names, error, parts):
    with pytest.raises(error) as refusal:
        targets.named(wanted, names)
    assert_says(refusal, error, parts)


def with_names(**attributes):
    model = ConvNet()
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


FIVE = ["cat", "dog", "owl", "fox", "elk"]
PLACES = [
    {"config": SimpleNamespace(id2label=dict(enumerate(FIVE)))},
    {"names": dict(enumerate(FIVE))},
    {"names": FIVE},
    {"class_names": FIVE},
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: "-".join(place))
@pytest.mark.parametrize(
    ("by_name", "by_index"),
    [("owl", 2), (["elk", "cat", "owl"], [4, 0, 2]), ([["dog", "Fox"]], [[1, 3]])],
    ids=["name", "one each", "several"],
)
def test_a_model_with_names_takes_them_as_target(by_name, by_index, place, images):
    model = with_names(**place)
    explanation = gradcam_fast.explain(model, images, target=by_name, layer=LAYER)
    expected = gradcam_fast.explain(model, images, target=by_index, layer=LAYER)
    assert torch.equal(explanation.target, expected.target) and torch.equal(explanation.heatmap, expected.heatmap)


def test_a_name_that_the_model_does_not_have_is_refused_before_it_runs(images):
    model = with_names(class_names=FIVE)
    with pytest.raises(ValueError, match="no class is named 'dogs'; did you mean 'dog'"):
        gradcam_fast.explain(model, images, target="dogs", layer=LAYER)
    assert model.calls == 0


def test_a_model_without_names_says_where_to_give_them(images):
    with pytest.raises(TypeError) as refusal:
        gradcam_fast.explain(ConvNet(), images, target=["dog", "cat", "owl"], layer=LAYER)
    assert_says(refusal, TypeError, ["'dog'", "ConvNet", "id2label", "index", "targets.named"])
