"""Behind a global average pooling the gradient is one number per channel: PyTorch's bits, expanded (stride 0).

How the op reads expanded gradients is in test_fused_kernel.py.
"""

import gc
import weakref

import pytest
import torch
from support.naive import full_graph, of_class
from support.networks import Doubled
from torch import nn
from torch.nn import functional as F

from gradcam_fast import Explainer, cam, explain
from gradcam_fast.features import feature_maps


class Net(nn.Module):
    """Feature maps (B,6,4,4), or with `rank` one axis or three; `head` turns them into five logits per image."""

    def __init__(self, head, rank=2):
        super().__init__()
        torch.manual_seed(1)
        convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank]
        self.maps = convolution(3, 6, 2, stride=2)
        self.linear, self.hidden = nn.Linear(6, 5), nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.read = head
        self.eval()

    def forward(self, images):
        return self.read(self, self.maps(images))


# Heads from the layer's output to logits, in which only a mean reads the output.
POOLED = {
    "adaptive": lambda net, maps: net.linear(F.adaptive_avg_pool2d(maps, 1).flatten(1)),
    "mean": lambda net, maps: net.linear(maps.mean((2, 3))),
    "mean that keeps": lambda net, maps: net.linear(maps.mean((-1, -2), keepdim=True)[:, :, 0, 0]),
    "a hidden layer": lambda net, maps: net.linear(net.hidden(maps.mean((2, 3))).relu()),
    "a norm": lambda net, maps: net.linear(net.norm(maps.mean((3, 2)))),
    "the means are the logits": lambda net, maps: maps.mean((2, 3)),
    "other means are detached": lambda net, maps: net.linear(maps.mean((2, 3)) + maps.mean((2, 3)).detach()),
    "in two steps, the first": lambda net, maps: net.linear(maps.mean(3).amax(2)),
}

# Heads whose gradient differs between positions, or does not come through one mean alone.
NOT_POOLED_ALONE = {
    "greatest": lambda net, maps: net.linear(maps.amax((2, 3))),
    "mean and greatest": lambda net, maps: net.linear(maps.mean((2, 3)) + maps.amax((2, 3))),
    "greatest and mean": lambda net, maps: net.linear(maps.amax((2, 3)) + maps.mean((2, 3))),
    "two means": lambda net, maps: net.linear(maps.mean((2, 3)) - maps[..., :2].mean((2, 3))),
    "an activation function between": lambda net, maps: net.linear(maps.relu().mean((2, 3))),
    "the same, in place": lambda net, maps: net.linear(maps.relu_().mean((2, 3))),
    "some positions": lambda net, maps: net.linear(maps[:, :, 1:].mean((2, 3))),
    "four regions": lambda net, maps: net.linear(F.adaptive_avg_pool2d(maps, 2).amax((2, 3))),
    "the mean of all": lambda net, maps: net.linear(net.norm(maps.mean((2, 3)) * maps.mean())),
}


def assert_as_in_the_full_graph(model, images, layer="maps"):
    """The gradients of one class and of three equal the full graph's; returns those of the one."""
    expected = {target: full_graph(model, layer, images, of_class(target))[1] for target in (0, 1, 4)}
    gradients = feature_maps(model, images, layer=layer, target=4).gradients
    assert torch.equal(gradients, expected[4]) and gradients.dtype == expected[4].dtype
    several = feature_maps(model, images, layer=layer, target=[[1, 4, 0]] * len(images)).gradients
    assert torch.equal(several, torch.stack([expected[target] for target in (1, 4, 0)], 1))
    return gradients


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("head", POOLED)
def test_a_pooled_gradient_is_expanded(head, layout):
    model = Net(POOLED[head]).to(memory_format=layout)
    images = torch.rand(2, 3, 8, 8).contiguous(memory_format=layout)
    gradients = assert_as_in_the_full_graph(model, images)
    assert gradients.stride(3) == 0 and gradients.abs().sum() > 0


@pytest.mark.parametrize("head", NOT_POOLED_ALONE)
def test_any_other_gradient_equals_the_full_graphs(head):
    assert_as_in_the_full_graph(Net(NOT_POOLED_ALONE[head]), torch.rand(2, 3, 8, 8))


def test_a_mean_over_no_axes_is_the_mean_over_all():
    model, images = Net(lambda net, maps: net.linear(maps.mean(()).expand(len(maps), 6))), torch.rand(2, 3, 8, 8)
    gradients = feature_maps(model, images, layer="maps", target=1).gradients
    assert torch.equal(gradients, full_graph(model, "maps", images, of_class(1))[1])


@pytest.mark.parametrize("rank", [1, 3])
def test_pooled_gradients_of_series_and_volumes_are_expanded(rank):
    axes = tuple(range(-rank, 0))
    model, images = Net(lambda net, maps: net.linear(maps.mean(axes)), rank), torch.rand(2, 3, *[8] * rank)
    gradients = assert_as_in_the_full_graph(model, images)
    assert gradients.stride()[2:] == (0,) * rank
    explanation = explain(model, images, layer="maps", target=1, normalize="none", relu=False)
    activations, written, _ = full_graph(model, "maps", images, of_class(1))
    torch.testing.assert_close(
        explanation.heatmap, cam(activations, written, [8] * rank, normalize="none", relu=False)[0]
    )


def test_pooled_gradients_of_tokens_are_expanded():
    class Tokens(nn.Module):
        def forward(self, maps):
            return maps.flatten(2).transpose(1, 2)

    model = Net(lambda net, maps: net.linear(net.tokens(maps).mean(1)))
    model.tokens = Tokens()
    images = torch.rand(2, 3, 8, 8)
    expected = full_graph(model, "tokens", images, of_class(2))[1]
    gradients = feature_maps(model, images, layer="tokens", target=2).gradients
    assert torch.equal(gradients, expected.transpose(1, 2).unflatten(2, (4, 4))) and gradients.stride()[2:] == (0, 0)


def test_the_gradient_of_a_layer_before_a_pooling_is_expanded_and_of_one_behind_it_is_not():
    """The gradient of the earlier layer comes through the mean alone."""
    model = nn.Sequential(nn.Conv2d(3, 6, 2), nn.AdaptiveAvgPool2d((1, 1)), nn.Conv2d(6, 8, 1), Wide(), nn.Flatten())
    images = torch.rand(2, 3, 8, 8)
    early, late = feature_maps(model.eval(), images, layer=["0", "3"], target=3)
    for maps in (early, late):
        assert torch.equal(maps.gradients, full_graph(model, maps.layer, images, of_class(3))[1])
    assert early.gradients.stride(3) == 0 and late.gradients.stride(3) == 1


class Wide(nn.Module):
    """From maps of one position to maps of four."""

    def forward(self, maps):
        return maps * torch.arange(4.0).reshape(2, 2)


def test_two_layers_that_are_read_by_more_than_a_mean():
    model = nn.Sequential(nn.Conv2d(3, 6, 2), nn.ReLU(), nn.Conv2d(6, 6, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.rand(2, 3, 8, 8)
    for maps in feature_maps(model.eval(), images, layer=["1", "2"], target=3):
        assert torch.equal(maps.gradients, full_graph(model, maps.layer, images, of_class(3))[1])


def test_targets_are_pooled_one_by_one_where_the_head_cannot_be_batched():
    model = Net(lambda net, maps: net.linear(Doubled.apply(maps.mean((2, 3)))))
    assert assert_as_in_the_full_graph(model, torch.rand(2, 3, 8, 8)).stride(3) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_pooled_gradients_keep_their_dtype(dtype):
    model = Net(POOLED["mean"]).to(dtype)
    assert assert_as_in_the_full_graph(model, torch.rand(2, 3, 8, 8, dtype=dtype)).dtype == dtype


def test_a_mean_in_another_dtype_is_expanded():
    model = Net(lambda net, maps: net.linear(maps.mean((2, 3), dtype=torch.float64).float()))
    assert assert_as_in_the_full_graph(model, torch.rand(2, 3, 8, 8)).stride(3) == 0


HOOKS = {
    "on the maps": lambda maps: maps.register_hook(lambda gradient: gradient * 2),
    "on the maps, place by place": lambda maps: maps.register_hook(lambda g: g * torch.arange(4.0)),
}


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_on_the_maps_changes_their_gradient(hook):
    def head(net, maps):
        if maps.requires_grad:
            HOOKS[hook](maps)
        return net.linear(maps.mean((2, 3)))

    assert_as_in_the_full_graph(Net(head), torch.rand(2, 3, 8, 8))


def test_a_hook_on_the_means_changes_the_gradient():
    def head(net, maps):
        means = maps.mean((2, 3))
        if means.requires_grad:
            means.register_hook(lambda gradient: gradient * torch.arange(6.0))
        return net.linear(means)

    gradients = assert_as_in_the_full_graph(Net(head), torch.rand(2, 3, 8, 8))
    assert gradients.stride(3) == 0 and not gradients[:, 0].any()


def test_maps_that_retain_their_gradient_still_do():
    kept = []

    def head(net, maps):
        if maps.requires_grad:
            maps.retain_grad()
            kept.append(maps)
        return net.linear(maps.mean((2, 3)))

    model, images = Net(head), torch.rand(2, 3, 8, 8)
    gradients = feature_maps(model, images, layer="maps", target=1).gradients
    assert torch.equal(kept[0].grad, gradients)


@pytest.mark.filterwarnings("ignore:Using a non-full backward hook", "ignore:Full backward hook is firing")
@pytest.mark.parametrize("on", ["0", "1", "2", "3", ""])
@pytest.mark.parametrize(
    "put", ["register_full_backward_hook", "register_full_backward_pre_hook", "register_backward_hook"]
)
def test_a_hook_on_a_module_changes_the_gradient_as_in_the_full_graph(put, on):
    model = nn.Sequential(nn.Conv2d(3, 6, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)).eval()
    images = torch.rand(2, 3, 8, 8)
    plain = assert_as_in_the_full_graph(model, images, "0")

    def doubled(module, gradients, *_):
        return tuple(None if gradient is None else gradient * 2 for gradient in gradients)

    getattr(model.get_submodule(on), put)(doubled)
    # On the layer or the whole model a full backward hook changes the gradient of the input, not of the maps.
    changed = put == "register_full_backward_pre_hook" or on in ("1", "2", "3") or put == "register_backward_hook"
    assert torch.equal(assert_as_in_the_full_graph(model, images, "0"), plain * (2 if changed else 1))


@pytest.mark.parametrize("keep", [False, True])
def test_a_hook_that_a_target_registers_on_the_maps_changes_the_gradient(keep):
    """A model may return its layer's own output."""
    model, kept = nn.Sequential(nn.Conv2d(3, 6, 2)).eval(), []

    def target(maps):
        if keep:
            maps.retain_grad()
        else:
            maps.register_hook(lambda gradient: gradient * 2)
        kept.append(maps)
        return maps.mean((2, 3))[:, 0]

    gradients = feature_maps(model, torch.rand(2, 3, 8, 8), layer="0", target=target).gradients
    expected = torch.zeros(2, 6, 7, 7)
    expected[:, 0] = (1 if keep else 2) / 49
    torch.testing.assert_close(gradients, expected)
    assert not keep or torch.equal(kept[0].grad, gradients)


def test_the_copy_handed_onward_does_not_outlive_the_call():
    handed_onward = []

    def head(net, maps):
        handed_onward.append(weakref.ref(maps))
        return net.linear(maps.mean((2, 3)))

    model = Net(head)
    explainer = Explainer(model, layer="maps")
    gc.disable()
    try:
        explainer(torch.rand(2, 3, 8, 8))
        assert [reference() for reference in handed_onward] == [None]
    finally:
        gc.enable()
