"""Names of classes instead of indices: by a list or dict of names, or by those that the model has."""

from types import SimpleNamespace

import pytest
import torch
from support.networks import ConvNet
from support.refusals import assert_says

import gradcam_fast
from gradcam_fast import targets
from gradcam_fast.class_names import class_names, names_of_model

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


@pytest.mark.parametrize(
    "names", [FIVE, tuple(FIVE), dict(enumerate(FIVE)), {str(i): name for i, name in enumerate(FIVE)}]
)
def test_names_given_once_serve_targets_and_results(names, images):
    explainer = gradcam_fast.Explainer(ConvNet(), names=names, layer=LAYER)
    explanation = explainer(images, ["elk", "Cat", "owl"])
    assert explanation.target.tolist() == [4, 0, 2] and explanation.names == tuple(FIVE)
    with pytest.raises(ValueError, match="no class is named 'elks'; did you mean 'elk'"):
        explainer(images, "elks")


def test_names_come_from_files_published_weights_and_models(images, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(FIVE))
    assert gradcam_fast.explain(ConvNet(), images, names=tmp_path / "names.txt", layer=LAYER).names == tuple(FIVE)
    assert gradcam_fast.explain(ConvNet(), images, names=with_names(class_names=FIVE), layer=LAYER).names == tuple(FIVE)
    assert gradcam_fast.explain(with_names(class_names=FIVE), images, layer=LAYER).names == tuple(FIVE)
    weights = pytest.importorskip("torchvision.models").ResNet18_Weights
    for source in (weights, weights.DEFAULT):
        assert class_names(source)[285] == "Egyptian cat"


@pytest.mark.parametrize(
    ("names", "error", "parts"),
    [
        ({0: "cat", 2: "dog"}, ValueError, ["0, 2", "0 to 1"]),
        (ConvNet(), TypeError, ["ConvNet", "id2label", "list"]),
        (["cat", 3], TypeError, ["3", "strings"]),
        (3, TypeError, ["names=3", "int", "list"]),
        ("nowhere.txt", FileNotFoundError, ["nowhere.txt", "no such file"]),
    ],
)
def test_names_that_cannot_be_are_refused_at_once(names, error, parts):
    with pytest.raises(error) as refusal:
        gradcam_fast.Explainer(ConvNet(), names=names)
    assert_says(refusal, error, parts)


def test_placeholders_of_transformers_are_no_names():
    labels = {0: "LABEL_0", 1: "LABEL_1"}
    assert names_of_model(with_names(config=SimpleNamespace(id2label=labels))) is None


def test_another_number_of_names_than_classes_is_refused(images):
    with pytest.raises(ValueError, match="names has 2 names for 5 classes; give one name per class"):
        gradcam_fast.explain(ConvNet(), images, names=["cat", "dog"], layer=LAYER)
    assert gradcam_fast.explain(with_names(class_names=["cat", "dog"]), images, layer=LAYER).names is None
