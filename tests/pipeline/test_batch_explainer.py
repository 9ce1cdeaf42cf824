"""A batch of photos is explained, or only predicted, with one forward; the classes may differ from photo to photo."""

from pathlib import Path

import numpy
import pytest
import torch
from support import red_or_blue

from gradcam_fast.pipeline.batch_explainer import BatchExplainer
from gradcam_fast.pipeline.photo_reading import load_photo
from gradcam_fast.pipeline.question import Question

CPU = torch.device("cpu")


def explainer(question=None, **options):
    return BatchExplainer(red_or_blue.network(), question or Question(), CPU, torch.float32, **options)


def loaded(*colours_and_cells):
    network = red_or_blue.network()
    return [
        load_photo(red_or_blue.photo(colour, cell), network.preprocess, path=Path("photo"), name="photo")
        for colour, cell in colours_and_cells
    ]


def images(*colours_and_cells):
    return torch.cat([photo.input for photo in loaded(*colours_and_cells)])


def hottest(heatmap):
    return numpy.unravel_index(heatmap.argmax(), heatmap.shape)


RED, BLUE = ("red", (2, 5)), ("blue", (6, 0))


def test_each_photo_has_the_map_of_its_own_class_at_the_resolution_of_the_layer():
    red, blue = explainer()(loaded(RED, BLUE))()
    assert (red.names, blue.names) == (("red",), ("blue",))
    assert red.maps.shape == (1, 7, 7) and hottest(red.maps[0]) == RED[1] and hottest(blue.maps[0]) == BLUE[1]
    assert red.layer == "1" and red.valid == (True,)


def test_classes_that_differ_from_photo_to_photo_are_explained_together_as_alone():
    batch = images(RED, BLUE, RED)
    target = torch.tensor([[1, 0], [0, 1], [0, 0]])
    together = explainer().explain(batch, target=target)()
    for place, result in enumerate(together):
        (alone,) = explainer().explain(batch[place : place + 1], target=target[place : place + 1])()
        assert result.classes == alone.classes == tuple(target[place].tolist())
        assert numpy.array_equal(result.maps, alone.maps) and result.scores == alone.scores


def test_one_class_of_each_photo_has_one_map():
    results = explainer().explain(images(RED, BLUE), target=torch.tensor([[0], [1]]))()
    assert [result.classes for result in results] == [(0,), (1,)]
    assert [hottest(result.maps[0]) for result in results] == [RED[1], BLUE[1]]


def test_a_prediction_names_the_classes_that_the_explanation_names():
    batch = images(RED, BLUE)
    for predicted, explained in zip(explainer().predict(batch)(), explainer().explain(batch)(), strict=True):
        assert predicted.best == explained.best and not predicted.maps.size and predicted.classes == ()
    assert [len(result.best) for result in explainer().predict(batch, 1)()] == [1, 1]


def test_only_the_photos_that_when_chooses_have_maps():
    chosen = explainer(when=lambda logits: logits[:, 0] > logits[:, 1]).explain(images(RED, BLUE))()
    assert [result.valid for result in chosen] == [(True,), (False,)]
    assert hottest(chosen[0].maps[0]) == RED[1] and not chosen[1].maps.any()
    assert [result.best[0][0] for result in chosen] == ["red", "blue"]


def test_an_unknown_layer_or_method_is_refused_before_a_photo_is_read():
    with pytest.raises(ValueError, match="conv9"):
        explainer(Question(layer="conv9"))
    with pytest.raises(ValueError, match="camera"):
        explainer(Question(method="camera"))
