"""Explanations compiled for a GPU, alone and in inductor's CUDA graphs; skipped without a CUDA device."""

import pytest
import torch
from support.compiled_explanations import assert_same, random_images
from support.networks import PatchNet, stateless

from gradcam_fast import Explainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA_GRAPHS = {"triton.cudagraphs": True}


@pytest.fixture(autouse=True)
def full_float32():
    """TF32 would differ from the eager network by more than the tolerance, depending on the kernels chosen."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("network", [stateless, lambda: PatchNet(1)], ids=["convolutions", "tokens"])
@pytest.mark.parametrize("options", [None, CUDA_GRAPHS], ids=["kernels", "graphs"])
def test_a_compiled_explanation_is_the_eager_one(network, options):
    explainer, images = Explainer(network().cuda()), random_images(3).cuda()
    compiled = explainer.compile(images, options=options)
    for batch in (images, random_images(3).cuda()):
        assert_same(compiled(batch), explainer(batch))
    assert compiled(images).heatmap.is_cuda


def test_results_are_not_overwritten_by_the_next_replay():
    explainer, images = Explainer(stateless().cuda()), random_images(2).cuda()
    compiled = explainer.compile(images, dynamic_batch=False, options=CUDA_GRAPHS)
    first = compiled(images)
    kept = first.heatmap.clone()
    compiled(-images)
    assert torch.equal(first.heatmap, kept)


def test_classes_on_the_device_may_be_out_of_range():
    explainer, images = Explainer(stateless().cuda()), random_images(3).cuda()
    compiled = explainer.compile(images, target=1)
    explanation = compiled(images, torch.tensor([1, 5, -1], device="cuda"))
    assert explanation.score.isnan().tolist() == [False, True, True]
    assert explanation.reason[1:] == ["no gradient", "no gradient"]


@pytest.mark.filterwarnings("ignore:the model has changed")
def test_new_weights_are_noticed():
    explainer, images = Explainer(stateless().cuda()), random_images(2).cuda()
    compiled = explainer.compile(images)
    before = compiled(images)
    with torch.no_grad():
        explainer.model.head[-1].weight.mul_(-1)
    after = compiled(images)
    assert not torch.equal(before.logits, after.logits)
    assert_same(after, explainer(images))


def test_images_on_another_device_than_the_model_are_refused():
    model = stateless()
    compiled = Explainer(model).compile(random_images(2))
    with pytest.raises(ValueError, match="images is on cuda:0 but the model is on cpu"):
        compiled(random_images(2).cuda())


def test_no_call_waits_for_the_device():
    explainer, images = Explainer(stateless().cuda()), random_images(2).cuda()
    compiled = explainer.compile(images)
    compiled(images)
    torch.cuda.set_sync_debug_mode("error")
    try:
        compiled(images)
    finally:
        torch.cuda.set_sync_debug_mode("default")
