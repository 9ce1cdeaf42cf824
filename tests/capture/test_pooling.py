"""Global average pooling behind the layer: a gradient of one number per channel, to the bit PyTorch's, not written out.

Knows nothing of how the op reads such gradients; test_fused_kernel.py has that.
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


# Each maps the layer's output to logits, by a mean that alone reads it.
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

# By these the gradient differs from place to place, or does not come through the mean alone.
OTHERWISE = {
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
    """The gradients for one class, and for three; returns those for one."""
    expected = {each: full_graph(model, layer, images, of_class(each))[1] for each in (0, 1, 4)}
    one = feature_maps(model, images, layer=layer, target=4).gradients
    assert torch.equal(one, expected[4]) and one.dtype == expected[4].dtype
    several = feature_maps(model, images, layer=layer, target=[[1, 4, 0]] * len(images)).gradients
    assert torch.equal(several, torch.stack([expected[each] for each in (1, 4, 0)], 1))
    return one


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("head", POOLED)
def test_a_pooled_gradient_is_expanded(head, layout):
    model = Net(POOLED[head]).to(memory_format=layout)
    images = torch.rand(2, 3, 8, 8).contiguous(memory_format=layout)
    gradients = assert_as_in_the_full_graph(model, images)
    assert gradients.stride(3) == 0 and gradients.abs().sum() > 0


@pytest.mark.parametrize("head", OTHERWISE)
def test_any_other_gradient_is_as_it_was(head):
    assert_as_in_the_full_graph(Net(OTHERWISE[head]), torch.rand(2, 3, 8, 8))


def test_the_mean_over_no_axes_is_that_of_all():
    model, images = Net(lambda net, maps: net.linear(maps.mean(()).expand(len(maps), 6))), torch.rand(2, 3, 8, 8)
    gradients = feature_maps(model, images, layer="maps", target=1).gradients
    assert torch.equal(gradients, full_graph(model, "maps", images, of_class(1))[1])


@pytest.mark.parametrize("rank", [1, 3])
def test_of_series_and_volumes(rank):
    axes = tuple(range(-rank, 0))
    model, images = Net(lambda net, maps: net.linear(maps.mean(axes)), rank), torch.rand(2, 3, *[8] * rank)
    gradients = assert_as_in_the_full_graph(model, images)
    assert gradients.stride()[2:] == (0,) * rank
    found = explain(model, images, layer="maps", target=1, normalize="none", relu=False)
    activations, written, _ = full_graph(model, "maps", images, of_class(1))
    torch.testing.assert_close(found.heatmap, cam(activations, written, [8] * rank, normalize="none", relu=False)[0])


def test_of_tokens():
    class Tokens(nn.Module):
        def forward(self, maps):
            return maps.flatten(2).transpose(1, 2)

    model = Net(lambda net, maps: net.linear(net.tokens(maps).mean(1)))
    model.tokens = Tokens()
    images = torch.rand(2, 3, 8, 8)
    expected = full_graph(model, "tokens", images, of_class(2))[1]
    found = feature_maps(model, images, layer="tokens", target=2).gradients
    assert torch.equal(found, expected.transpose(1, 2).unflatten(2, (4, 4))) and found.stride()[2:] == (0, 0)


def test_two_layers_with_a_pooling_between_them():
    """The gradient of the earlier comes through the mean alone, and through the later."""
    model = nn.Sequential(nn.Conv2d(3, 6, 2), nn.AdaptiveAvgPool2d((1, 1)), nn.Conv2d(6, 8, 1), Wide(), nn.Flatten())
    images = torch.rand(2, 3, 8, 8)
    early, late = feature_maps(model.eval(), images, layer=["0", "3"], target=3)
    for maps in (early, late):
        assert torch.equal(maps.gradients, full_graph(model, maps.layer, images, of_class(3))[1])
    assert early.gradients.stride(3) == 0 and late.gradients.stride(3) == 1


class Wide(nn.Module):
    """Makes maps of one position maps of four."""

    def forward(self, maps):
        return maps * torch.arange(4.0).reshape(2, 2)


def test_two_layers_neither_of_which_a_mean_alone_reads():
    model = nn.Sequential(nn.Conv2d(3, 6, 2), nn.ReLU(), nn.Conv2d(6, 6, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.rand(2, 3, 8, 8)
    for maps in feature_maps(model.eval(), images, layer=["1", "2"], target=3):
        assert torch.equal(maps.gradients, full_graph(model, maps.layer, images, of_class(3))[1])


def test_target_by_target_where_the_head_cannot_take_several_at_once():
    model = Net(lambda net, maps: net.linear(Doubled.apply(maps.mean((2, 3)))))
    assert assert_as_in_the_full_graph(model, torch.rand(2, 3, 8, 8)).stride(3) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_of_other_types(dtype):
    model = Net(POOLED["mean"]).to(dtype)
    assert assert_as_in_the_full_graph(model, torch.rand(2, 3, 8, 8, dtype=dtype)).dtype == dtype


def test_a_mean_in_another_type():
    model = Net(lambda net, maps: net.linear(maps.mean((2, 3), dtype=torch.float64).float()))
    assert assert_as_in_the_full_graph(model, torch.rand(2, 3, 8, 8)).stride(3) == 0


HOOKS = {
    "on the maps": lambda maps: maps.register_hook(lambda gradient: gradient * 2),
    "on the maps, place by place": lambda maps: maps.register_hook(lambda g: g * torch.arange(4.0)),
}


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_on_the_maps_sees_and_changes_their_gradient(hook):
    def head(net, maps):
        if maps.requires_grad:
            HOOKS[hook](maps)
        return net.linear(maps.mean((2, 3)))

    assert_as_in_the_full_graph(Net(head), torch.rand(2, 3, 8, 8))


def test_a_hook_on_the_means_changes_the_gradient_too():
    def head(net, maps):
        means = maps.mean((2, 3))
        if means.requires_grad:
            means.register_hook(lambda gradient: gradient * torch.arange(6.0))
        return net.linear(means)

    gradients = assert_as_in_the_full_graph(Net(head), torch.rand(2, 3, 8, 8))
    assert gradients.stride(3) == 0 and not gradients[:, 0].any()


def test_maps_that_keep_their_gradient_still_do():
    kept = []

    def head(net, maps):
        if maps.requires_grad:
            maps.retain_grad()
            kept.append(maps)
        return net.linear(maps.mean((2, 3)))

    model, images = Net(head), torch.rand(2, 3, 8, 8)
    found = feature_maps(model, images, layer="maps", target=1).gradients
    assert torch.equal(kept[0].grad, found)


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
        return tuple(None if each is None else each * 2 for each in gradients)

    getattr(model.get_submodule(on), put)(doubled)
    # A hook on the input of the layer, or of the whole model, comes too late.
    changed = put == "register_full_backward_pre_hook" or on in ("1", "2", "3") or put == "register_backward_hook"
    assert torch.equal(assert_as_in_the_full_graph(model, images, "0"), plain * (2 if changed else 1))


@pytest.mark.parametrize("keep", [False, True])
def test_a_hook_that_a_target_puts_on_the_maps(keep):
    """A model may return its layer's own output."""
    model, kept = nn.Sequential(nn.Conv2d(3, 6, 2)).eval(), []

    def target(maps):
        if keep:
            maps.retain_grad()
        else:
            maps.register_hook(lambda gradient: gradient * 2)
        kept.append(maps)
        return maps.mean((2, 3))[:, 0]

    found = feature_maps(model, torch.rand(2, 3, 8, 8), layer="0", target=target).gradients
    expected = torch.zeros(2, 6, 7, 7)
    expected[:, 0] = (1 if keep else 2) / 49
    torch.testing.assert_close(found, expected)
    assert not keep or torch.equal(kept[0].grad, found)


def test_the_copy_handed_onward_does_not_outlive_the_call():
    handed = []

    def head(net, maps):
        handed.append(weakref.ref(maps))
        return net.linear(maps.mean((2, 3)))

    model = Net(head)
    explainer = Explainer(model, layer="maps")
    gc.disable()
    try:
        explainer(torch.rand(2, 3, 8, 8))
        assert [each() for each in handed] == [None]
    finally:
        gc.enable()
