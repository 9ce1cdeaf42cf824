"""The picture of the README shows what it says: two classes, two places, of one prediction with trained weights."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("skimage")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import bobsled_or_helmet
from pictures import sample_photo

from gradcam_fast.metrics import mass_accuracy

# In the 512 x 512 pixels of the photo, as shares of the part that the network sees: left, top, right, bottom.
HELMET = (0.53, 0.66, 0.99, 1.0)
SUIT_AND_COLLAR = (0.03, 0.25, 0.55, 1.0)


@pytest.fixture(scope="module")
def explanation():
    return bobsled_or_helmet.explain(sample_photo("astronaut.png"))


def share_of_heat(explanation, box):
    """The share of each map's heat inside of a box."""
    side = explanation.heatmap.shape[-1]
    return mass_accuracy(explanation.heatmap[0], [[edge * side for edge in box]] * 2).tolist()


def test_the_network_takes_the_astronaut_for_a_bobsled_or_a_football_helmet(explanation):
    best = explanation.top(2)[0]
    assert [prediction.name for prediction in best] == bobsled_or_helmet.CLASSES
    assert [round(100 * prediction.probability) for prediction in best] == [20, 17]


def test_the_heat_of_the_helmet_is_on_the_helmet_and_that_of_the_bobsled_on_the_suit(explanation):
    bobsled, helmet = share_of_heat(explanation, HELMET)
    assert helmet > 0.45 and bobsled < 0.3
    bobsled, helmet = share_of_heat(explanation, SUIT_AND_COLLAR)
    assert bobsled > 0.45 and helmet < 0.35


def test_the_picture_has_the_photo_and_a_map_for_each_class(tmp_path):
    bobsled_or_helmet.main(["--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["bobsled-or-helmet.jpg"]
