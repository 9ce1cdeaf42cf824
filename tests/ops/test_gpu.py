"""The CUDA kernel on a GPU: its results, streams, devices, graphs and memory, and that no call makes the host wait.

Skipped where there is no CUDA device; test_gpu_on_host.py checks the kernel's arithmetic on the host.
"""

import pytest
import torch
from support.op_cases import DTYPES, LAYOUTS, SHAPES, assert_agrees, assert_same_bits, inputs

import gradcam_fast
from gradcam_fast.ops.arguments import METHODS, NORMALIZATIONS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
TOLERANCE = 1e-5


def on_gpu(*maps):
    # A copy to the device keeps dense strides only, so tests of other layouts change the layout there.
    return [tensor.cuda() for tensor in maps]


def test_the_kernel_is_what_is_tested():
    assert gradcam_fast.backend().kernels[1].fused, gradcam_fast.backend()


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "size"), [*SHAPES, ((2, 0, 4, 128, 128), (1024, 1024)), ((1, 0, 2, 300, 280), 64)])
def test_agrees_with_the_reference(shape, size, dtype, method, normalize, relu):
    maps = on_gpu(*inputs(shape, dtype))
    size = (size, size) if isinstance(size, int) else size
    assert_agrees(*maps, size, TOLERANCE, method=method, normalize=normalize, relu=relu)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_memory_layout_gives_the_same_map(layout, dtype, method):
    activations, gradients = (LAYOUTS[layout](maps) for maps in on_gpu(*inputs((2, 3, 70, 6, 5), dtype)))
    assert_agrees(activations, gradients, (24, 20), TOLERANCE, method=method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(2048, 7, 7), (512, 14, 14), (64, 56, 56)])
def test_an_image_has_the_same_bits_alone_and_among_any_number(shape, method):
    """A cluster of blocks works on a lone image, one block on each of a thousand."""
    activations, gradients = torch.randn(1, *shape).cuda(), torch.randn(1, *shape).cuda()
    expected = gradcam_fast.cam(activations, gradients, 224, method=method)
    for batch in (2, 30, 70, 300, 1000):
        if batch * activations.numel() > 2**28:
            continue
        maps = (tensor.expand(batch, -1, -1, -1) for tensor in (activations, gradients))
        results = gradcam_fast.cam(*maps, 224, method=method)
        assert_same_bits([result[batch // 2 :][:1] for result in results], expected)


def test_the_current_stream_is_used():
    activations, gradients = on_gpu(*inputs((8, 0, 512, 14, 14)))
    expected = gradcam_fast.cam(activations, gradients, 224)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = gradients + 0
        results = gradcam_fast.cam(activations, late, 224)
    stream.synchronize()
    assert_same_bits(results, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device only")
def test_the_maps_own_device_is_used():
    activations, gradients = inputs((2, 0, 64, 7, 7))
    second = gradcam_fast.cam(activations.to("cuda:1"), gradients.to("cuda:1"), 56)
    assert all(result.device == torch.device("cuda:1") for result in second)
    first = gradcam_fast.cam(*on_gpu(activations, gradients), 56)
    assert_same_bits([result.cpu() for result in second], [result.cpu() for result in first])


def test_a_cuda_graph_can_record_the_op():
    activations, gradients = on_gpu(*inputs((4, 0, 256, 7, 7)))
    gradcam_fast.cam(activations, gradients, 112)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = gradcam_fast.cam(activations, gradients, 112)
    for _ in range(3):
        activations.copy_(torch.randn_like(activations))
        graph.replay()
        assert_same_bits(replayed, gradcam_fast.cam(activations, gradients, 112))


def network():
    layers = [torch.nn.Conv2d(3, 32, 3, 2), torch.nn.ReLU(inplace=True), torch.nn.Conv2d(32, 64, 3, 2), torch.nn.ReLU()]
    head = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(64, 10)]
    return torch.nn.Sequential(*layers, *head).eval().cuda()


def test_an_explanation_never_waits_for_the_device():
    explainer = gradcam_fast.Explainer(network(), layer="3")
    images = torch.randn(4, 3, 64, 64, device="cuda")
    targets = (None, 3, torch.tensor([1, 2, 3, 4], device="cuda"))
    # The first overlay copies the colormap to the device, for which the host waits.
    gradcam_fast.overlay(images.clamp(0, 1), explainer(images, 1).heatmap)
    explainer(images, topk=2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for target in targets:
            explanation = explainer(images, target)
        explainer(images, topk=3)
        gradcam_fast.overlay(images.clamp(0, 1), explanation.heatmap)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("chosen", [[0, 3, 4], []])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_only_the_chosen_images_are_explained(device, chosen):
    mask = torch.tensor([image in chosen for image in range(6)])
    model, images = network(), torch.randn(6, 3, 64, 64, device="cuda")
    whole = gradcam_fast.Explainer(model)(images)
    part = gradcam_fast.Explainer(model, when=lambda logits: mask.to(device))(images)
    assert_same_bits((part.heatmap[mask], part.raw_max[mask]), (whole.heatmap[mask], whole.raw_max[mask]))
    assert part.heatmap.is_cuda and not part.heatmap[~mask].any() and not part.valid[~mask].any()


def test_two_hundred_explanations_leave_no_memory_allocated():
    explainer, images = gradcam_fast.Explainer(network()), torch.randn(4, 3, 64, 64, device="cuda")
    allocated = []
    for _ in range(200):
        explainer(images)
        torch.cuda.synchronize()
        allocated.append(torch.cuda.memory_allocated())
    assert len(set(allocated[3:])) == 1
