"""Explanations compiled by PyTorch's inductor. Networks are small: each compilation takes seconds."""

import pytest
import torch
from support.compiled_explanations import assert_same, random_images
from support.networks import PatchNet, stateless

from gradcam_fast import Explainer
from gradcam_fast.exceptions import CannotCompile


@pytest.fixture(scope="module", autouse=True)
def one_compiler_process():
    """Its workers would compete with the tests', and are started once a process."""
    from torch._inductor import config

    with config.patch(compile_threads=1):
        yield


@pytest.fixture(scope="module")
def compiled():
    torch.manual_seed(0)
    explainer = Explainer(stateless(), method="layercam")
    return explainer, explainer.compile(random_images(3), topk=2)


def test_the_compiled_explainer_explains_as_the_explainer(compiled):
    explainer, compiled_explainer = compiled
    for batch in (3, 5):
        images = random_images(batch)
        assert_same(compiled_explainer(images, topk=2), explainer(images, topk=2))
    assert compiled_explainer.eager_because is None and compiled_explainer.layer == "features"


@pytest.mark.filterwarnings("ignore:the model has changed")
def test_new_weights_are_compiled_again(compiled):
    explainer, compiled_explainer = compiled
    images = random_images(3)
    before = compiled_explainer(images, topk=2)
    with torch.no_grad():
        explainer.model.head[-1].weight.mul_(-1)
    after = compiled_explainer(images, topk=2)
    assert not torch.equal(after.logits, before.logits)
    assert_same(after, explainer(images, topk=2))


def test_images_that_are_not_finite_are_told_though_compiled_code_hides_it(compiled):
    explainer, compiled_explainer = compiled
    images = random_images(4)
    images[1, 0, 3, 3], images[2, 1, 0, 0] = torch.nan, torch.inf
    expected, explanation = explainer(images, topk=2), compiled_explainer(images, topk=2)
    assert explanation.reason == expected.reason and explanation.reason[1] == ["not finite"] * 2
    assert torch.equal(explanation.valid, expected.valid) and not explanation.heatmap[1:3].any()
    for batch in (0, 3):
        torch.testing.assert_close(explanation.heatmap[batch], expected.heatmap[batch], rtol=0, atol=2e-5)


@pytest.mark.slow
def test_without_freeze_weights_in_place_are_read_as_they_are():
    model = stateless()
    explainer = Explainer(model)
    compiled_explainer = explainer.compile(random_images(2), target=1, freeze=False)
    graph = compiled_explainer._runner.records[0]
    model.head[-1].weight.data.mul_(-1)
    images = random_images(4)
    assert_same(compiled_explainer(images, [0, 1, 2, 3]), explainer(images, [0, 1, 2, 3]))
    assert compiled_explainer._runner.records[0] is graph


@pytest.mark.slow
def test_tokens_behind_a_class_token():
    explainer, images = Explainer(PatchNet(1)), random_images(3)
    assert_same(explainer.compile(images)(images), explainer(images))


def test_no_compiler_is_said_in_a_sentence(monkeypatch):
    from torch._inductor import config

    monkeypatch.setenv("PATH", "/nowhere")
    with (
        config.patch(force_disable_caches=True),
        pytest.raises(CannotCompile, match=r"no C\+\+ compiler that works .* install g\+\+ or clang"),
    ):
        Explainer(stateless()).compile(random_images(2))


def test_recorded_kernels_are_not_compiled():
    with pytest.raises(ValueError, match=r"triton\.cudagraphs"):
        Explainer(stateless(), cuda_graph=True).compile(random_images(2))


def test_an_unknown_fallback_is_refused():
    with pytest.raises(ValueError, match="fallback='jit' is unknown"):
        Explainer(stateless()).compile(random_images(2), fallback="jit")
