"""`Explanation.reason`: one word for each heatmap that shows nothing, whatever the method and the layers."""

import pytest
import torch
from support.fake_recorder import graph_explainer
from support.networks import ConvNet
from torch import nn

import gradcam_fast
from gradcam_fast.explanation import REASONS
from gradcam_fast.ops.arguments import METHODS
from gradcam_fast.ops.heatmaps import heatmaps, heatmaps_of_several

LAYER = "features.3"
ACTIVATIONS = torch.tensor([[[[1.0, 2.0], [0.0, 3.0]], [[0.5, 0.0], [4.0, 1.0]]]])
AGAINST, ZERO = -torch.ones(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
POOLED_AGAINST, POOLED_ZERO = (maps[..., :1, :1].expand(1, 2, 2, 2) for maps in (AGAINST, ZERO))
# Activations, gradients, and the reason of every method.
CASES = {
    "for": (ACTIVATIONS, -AGAINST, ""),
    "against": (ACTIVATIONS, AGAINST, "only counter-evidence"),
    "against, the same at all positions": (ACTIVATIONS, POOLED_AGAINST, "only counter-evidence"),
    "a constant against": (torch.ones(1, 2, 2, 2), AGAINST, "only counter-evidence"),
    "no gradient": (ACTIVATIONS, ZERO, "no gradient"),
    "no gradient, the same at all positions": (ACTIVATIONS, POOLED_ZERO, "no gradient"),
    "no gradient of a constant": (torch.ones(1, 2, 2, 2), ZERO, "no gradient"),
    "a constant": (torch.ones(1, 2, 2, 2), -AGAINST, "flat"),
    "dead activations": (ZERO, -AGAINST, "flat"),
    "dead activations, gradients against": (ZERO, AGAINST, "flat"),
    "NaN in the activations": (ACTIVATIONS * torch.nan, -AGAINST, "not finite"),
    "Inf in the gradients": (ACTIVATIONS, AGAINST * torch.inf, "not finite"),
}  # fmt: skip


def reasons(activations, gradients, *, method="gradcam", normalize="minmax", relu=True, may_wait=True):
    *_, valid, codes = heatmaps(
        activations, gradients, (4, 4), method=method, normalize=normalize, relu=relu, may_wait=may_wait
    )
    words = [REASONS[code] for code in codes.flatten().tolist()]
    assert [word == "" for word in words] == valid.flatten().tolist()
    return words


@pytest.mark.parametrize("may_wait", [True, False])
@pytest.mark.parametrize("normalize", ["minmax", "max", "none"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_each_kind_of_empty_map_has_its_word(case, method, normalize, may_wait):
    activations, gradients, expected = CASES[case]
    if normalize == "max" and case == "a constant":
        expected = "flat"
    assert reasons([activations], [gradients], method=method, normalize=normalize, may_wait=may_wait) == [expected]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_the_word_does_not_depend_on_the_dtype(case, dtype):
    activations, gradients, expected = CASES[case]
    assert reasons([activations.to(dtype)], [gradients.to(dtype)]) == [expected]


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_series_and_volumes_have_the_same_words(case, rank):
    activations, gradients, expected = CASES[case]
    shape = (4,) if rank == 1 else (1, 2, 2)
    maps = [[tensor.reshape(1, 2, *shape)] for tensor in (activations, gradients)]
    *_, codes = heatmaps(*maps, shape, method="gradcam", normalize="minmax", relu=True)
    assert [REASONS[code] for code in codes.tolist()] == [expected]


def test_each_map_of_a_batch_and_of_several_targets_has_its_own_word():
    names = ["for", "against", "no gradient", "a constant", "dead activations", "Inf in the gradients"]
    activations, gradients = (torch.cat([CASES[name][place] for name in names]) for place in (0, 1))
    assert reasons([activations], [gradients]) == [CASES[name][2] for name in names]
    three = torch.stack([-AGAINST[0], ZERO[0], AGAINST[0]])[None]
    assert reasons([ACTIVATIONS], [three]) == ["", "no gradient", "only counter-evidence"]


@pytest.mark.parametrize(
    ("normalize", "expected"),
    [("minmax", ["", "flat", "no gradient"]), ("none", ["", "flat", "no gradient"]),
     ("max", ["only counter-evidence", "only counter-evidence", "no gradient"])],
)  # fmt: skip
def test_without_relu_counter_evidence_shows_but_when_divided_by_the_maximum(normalize, expected):
    names = ["against", "a constant against", "no gradient"]
    activations, gradients = (torch.cat([CASES[name][place] for name in names]) for place in (0, 1))
    assert reasons([activations], [gradients], relu=False, normalize=normalize) == expected


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("for", "no gradient", ""),
        ("no gradient", "no gradient", "no gradient"),
        ("no gradient", "against", "only counter-evidence"),
        ("against", "a constant", "only counter-evidence"),
        ("no gradient", "a constant", "flat"),
        ("for", "Inf in the gradients", "not finite"),
    ],
)
def test_of_several_layers_one_with_counter_evidence_is_enough(first, second, expected):
    activations, gradients = ([CASES[name][place] for name in (first, second)] for place in (0, 1))
    assert reasons(activations, gradients) == [expected]


def test_a_pooled_gradient_that_rounding_leaves_of_zero_is_none():
    gradients = torch.tensor([[[[1.0, -1.0], [0.3, -0.3]]] * 2])
    gradients[0, 0, 0, 0] += 1e-6
    # Activations of a constant: a map without it would be valid.
    assert reasons([torch.ones(1, 2, 2, 2)], [gradients]) == ["no gradient"]
    assert reasons([ACTIVATIONS], [-gradients], method="hirescam") == [""]


@pytest.mark.parametrize(("dtype", "noise"), [(torch.float64, 1e-5), (torch.float16, 1e-4), (torch.bfloat16, 1e-3)])
def test_the_dtype_of_a_gradient_says_what_rounding_leaves_of_zero(dtype, noise):
    rounded = torch.tensor([[[[1.0, -1.0 + noise], [0.25, -0.25]]] * 2], dtype=dtype)
    larger = torch.tensor([[[[1.0, -1.0 + 20 * noise], [0.25, -0.25]]] * 2], dtype=dtype)
    ones = torch.ones(1, 2, 2, 2, dtype=dtype)
    assert reasons([ones], [rounded]) == ["no gradient"]
    assert reasons([ACTIVATIONS.to(dtype)], [larger]) == [""]


@pytest.mark.parametrize("may_wait", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_map_that_only_rounding_keeps_from_being_flat_is_flat(dtype, may_wait):
    unit = torch.finfo(dtype).eps
    constant = torch.ones(1, 2, 2, 2, dtype=dtype)
    rounded, varied = constant.clone(), constant.clone()
    rounded[..., 0, 0] += 4 * unit
    varied[..., 0, 0] += 400 * unit
    for scale in (1e-9, 1, 1e9):  # of the gradients: no absolute size decides
        choices = {"normalize": "none", "relu": False, "may_wait": may_wait}
        assert reasons([rounded], [scale * constant], **choices) == ["flat"]
        assert reasons([varied], [scale * constant], **choices) == [""]


def test_an_explanation_says_it_in_the_shape_of_its_maps(images):
    model = ConvNet()
    with torch.no_grad():
        model.head[-1].weight[3] = 0
    explanation = gradcam_fast.explain(model, images, target=[[0, 3]], layer=LAYER)
    assert explanation.valid[:, 0].all()
    assert explanation.reason == [["", "no gradient"]] * 3
    assert gradcam_fast.explain(model, images, target=0, layer=LAYER).reason == [""] * 3
    assert explanation.reason_codes.dtype == torch.uint8 and repr(explanation).endswith("3 of 6 valid)")


def test_of_a_score_and_its_negative_one_has_only_counter_evidence():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)).eval()
    with torch.no_grad():
        model[-1].weight.abs_()
    target = gradcam_fast.targets.binary
    images = torch.rand(2, 3, 8, 8)
    assert gradcam_fast.explain(model, images, target=target(True), layer="1").reason == ["", ""]
    against = gradcam_fast.explain(model, images, target=target(False), layer="1")
    assert against.reason == ["only counter-evidence"] * 2
    signed = gradcam_fast.explain(model, images, target=target(False), layer="1", relu=False)
    assert signed.reason == ["", ""]


@pytest.mark.parametrize(
    ("mask", "expected"), [([1, 0, 1], ["no gradient", "not chosen", ""]), ([0, 0, 0], ["not chosen"] * 3)]
)
def test_images_that_when_leaves_out_were_not_chosen(mask, expected, images):
    model = ConvNet()

    def target(logits):
        return logits[:, 0] * torch.tensor([0.0, 1.0, 1.0])

    explainer = gradcam_fast.Explainer(model, layer=LAYER, when=lambda logits: torch.tensor(mask, dtype=torch.bool))
    assert explainer(images, target).reason == expected


def test_a_replayed_graph_says_it_of_each_call(images):
    model = ConvNet()
    with torch.no_grad():
        model.head[-1].weight[3] = 0
    explainer = graph_explainer(model, layer=LAYER)
    for classes in ([0, 3, 0], [3, 0, 0], [0, 0, 3], [3, 3, 0]):
        expected = ["no gradient" if index == 3 else "" for index in classes]
        assert explainer(images, classes).reason == expected
    assert explainer.eager_because is None


def test_an_explanation_put_together_by_hand_has_words_too():
    maps, extremes, valid = (
        torch.zeros(3, 2, 2),
        torch.tensor([1.0, 0.0, torch.nan]),
        torch.tensor([True, False, False]),
    )
    explanation = gradcam_fast.Explanation(maps, None, None, extremes, extremes, extremes, valid, "layer4")
    assert explanation.reason == ["", "flat", "not finite"]


def test_an_empty_batch_has_no_words(images):
    assert gradcam_fast.explain(ConvNet(), images[:0], layer=LAYER).reason == []


class SoftmaxOverPositions(nn.Module):
    """The weights of an attention pooling: their gradient sums to zero over the positions."""

    def __init__(self):
        super().__init__()
        self.trunk, self.attention = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 1, 1)
        self.head = nn.Linear(16, 5)
        self.eval()

    def forward(self, images):
        maps = self.trunk(images).relu()
        weights = self.attention(maps).flatten(2).softmax(2)
        return self.head((maps.flatten(2) * weights).sum(2))


def test_a_pooled_gradient_of_rounding_noise_is_not_valid_and_a_warning_says_so(images):
    model = SoftmaxOverPositions()
    with pytest.warns(UserWarning, match="'attention' has a mean of no more than rounding noise .*softmax"):
        explanation = gradcam_fast.explain(model, images, target=1, layer="attention", relu=False)
    assert not explanation.valid.any() and explanation.reason == ["no gradient"] * 3
    found = gradcam_fast.explain(model, images, target=1, relu=False)
    assert found.layer == "trunk" and found.valid.all() and found.reason == [""] * 3
    # Methods that do not pool the gradient have something to show there.
    by_position = gradcam_fast.explain(model, images, target=1, layer="attention", relu=False, method="hirescam")
    assert by_position.valid.all()


# The two pictures of each sample, and the words of two targets: the second has no gradient.
SAMPLES = [
    (("for", "no gradient"), ("", "no gradient")),
    (("for", "against"), ("", "no gradient")),
    (("no gradient", "no gradient"), ("no gradient", "no gradient")),
    (("no gradient", "against"), ("only counter-evidence", "no gradient")),
    (("against", "against"), ("only counter-evidence", "no gradient")),
    (("dead activations", "dead activations"), ("flat", "no gradient")),
    (("for", "NaN in the activations"), ("not finite", "not finite")),
]


@pytest.mark.parametrize("may_wait", [True, False])
@pytest.mark.parametrize("pictures", [[(0, 1)], [(1,), (0,)]], ids=["of one layer", "of a layer each"])
@pytest.mark.parametrize("method", METHODS)
def test_the_pictures_of_a_sample_have_one_word_together(method, pictures, may_wait):
    activations, gradients = [], []
    for covered in pictures:
        cases = [CASES[names[picture]] for names, _ in SAMPLES for picture in covered]
        activations.append(torch.cat([maps for maps, _, _ in cases]))
        gradients.append(torch.stack([torch.cat([gradient, ZERO]) for _, gradient, _ in cases]))
    choices = {"method": method, "normalize": "minmax", "relu": True, "may_wait": may_wait}
    heatmap, _, _, valid, codes = heatmaps_of_several(activations, gradients, (4, 4), pictures, **choices)
    assert heatmap.shape == (len(SAMPLES), 2, 2, 4, 4)
    assert [tuple(REASONS[code] for code in row) for row in codes.tolist()] == [words for _, words in SAMPLES]
    assert torch.equal(valid, codes == 0)
