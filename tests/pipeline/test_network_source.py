"""A source of a network is plain values, from which any process loads the same network."""

import pickle
from dataclasses import replace

import pytest
import torch
from support import red_or_blue

from gradcam_fast.pipeline.network_source import NetworkSource

SOURCE = NetworkSource(
    "support.red_or_blue:model", size=(red_or_blue.SIDE,) * 2, mean=(0.0,) * 3, std=(1.0,) * 3, device="cpu"
)


def test_a_pickled_source_loads_the_same_network():
    network, again = SOURCE.load(), pickle.loads(pickle.dumps(SOURCE)).load()
    images = torch.rand(2, 3, red_or_blue.SIDE, red_or_blue.SIDE)
    assert again.preprocess == network.preprocess and again.class_names == network.class_names
    assert torch.equal(again.model(images), network.model(images))


def test_the_placement_is_the_device_and_type_named():
    assert SOURCE.placement() == (torch.device("cpu"), torch.float32)
    assert replace(SOURCE, dtype="bfloat16").placement() == (torch.device("cpu"), torch.bfloat16)


def test_a_device_that_does_not_work_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match=r"--device: 'abacus' does not work on this machine \(.*\); give cpu"):
        replace(SOURCE, device="abacus").placement()


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"target": "green"}, "target: no class is named 'green'"),
        ({"target": 2}, "target: class 2 is out of range; this network has the classes 0 to 1"),
        ({"topk": 3}, "topk: 3 is more than this network's 2 classes; give at most 2"),
    ],
)
def test_a_question_that_the_network_cannot_answer_names_its_part(asked, error):
    with pytest.raises(ValueError, match=error) as caught:
        red_or_blue.network().ask(**asked)
    assert caught.value.field == error.partition(":")[0]


def test_a_question_is_about_one_class_or_the_most_probable():
    network = red_or_blue.network()
    assert network.ask(target="blue").target == 1 and network.ask(target="blue").topk is None
    assert network.ask(default_topk=9).topk == 2 and network.ask(topk=1).topk == 1
