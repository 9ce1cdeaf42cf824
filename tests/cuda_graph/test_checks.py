"""A rehearsal refuses what a capture could not hold, lets an explanation pass, and knows what memory it reads.

The host waits for no CPU, but asks it in the same operations. PyTorch's meta device stands in for another one.
"""

import pytest
import torch
from support.networks import ConvNet

import gradcam_fast
from gradcam_fast._cuda_graph.checks import CannotRecord, rehearse

CPU = torch.device("cpu")
MAPS = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda: MAPS.sum().item(), "_local_scalar_dense"),
        (lambda: 1 if MAPS.any() else 0, "_local_scalar_dense"),
        (lambda: torch.equal(MAPS, MAPS), "equal"),
        (lambda: MAPS.nonzero(), "nonzero"),
        (lambda: MAPS[MAPS > 0], "index"),
        (lambda: MAPS.clone().index_put_((MAPS > 0,), MAPS[0, 0]), "index_put_"),
        (lambda: MAPS.unique(), "unique"),
    ],
)
def test_questions_to_the_device_are_refused(function, operation):
    with pytest.raises(CannotRecord, match=rf"aten\._?{operation}\d?\.\w+ makes the host wait for the device"):
        rehearse(function, CPU)


@pytest.mark.parametrize("copy", [lambda: MAPS.to("meta"), lambda: torch.empty(2, 3, device="meta").copy_(MAPS)])
def test_copies_between_host_and_device_are_refused(copy):
    with pytest.raises(CannotRecord, match="from cpu to meta in every run"):
        rehearse(copy, torch.device("meta"))


def test_what_the_host_asks_itself_is_allowed():
    seen = []
    rehearse(lambda: seen.append(MAPS.sum().item()), torch.device("meta"))
    assert seen == [6.0]


def test_a_refusal_in_a_batched_backward_is_not_taken_for_a_reason_to_go_one_by_one(images):
    class Asking(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits):
            return logits * 2

        @staticmethod
        def backward(ctx, gradient):
            assert gradient.sum().item() is not None
            return gradient * 2

    model = ConvNet()
    model.head.append(torch.nn.Identity())
    model.head[-1].forward = Asking.apply
    explainer = gradcam_fast.Explainer(model, layer="features.3")
    with pytest.raises(CannotRecord):
        rehearse(lambda: explainer(images, lambda logits: logits[:, :1]), CPU)


@pytest.mark.parametrize("question", [{}, {"topk": 2}, {"target": lambda logits: logits[:, :3]}])
def test_an_explanation_passes_and_the_weights_are_what_it_reads(question, images):
    explainer = gradcam_fast.Explainer(ConvNet(), layer="features.3")
    asked = explainer._request(images, **question)
    read = rehearse(lambda: explainer._explain_at(asked, explainer._layers), CPU)
    places = {memory.data_ptr() for memory in read}
    used = [each for name, each in explainer.model.state_dict().items() if "num_batches" not in name]
    assert {each.data_ptr() for each in (*used, images)} <= places
    assert len(places) == len(used) + 1


def test_what_a_function_has_in_its_closure_is_read():
    weights = torch.randn(2, 3)
    read = rehearse(lambda: (MAPS * weights).sum(), CPU)
    assert {memory.data_ptr() for memory in read} == {MAPS.data_ptr(), weights.data_ptr()}
