"""The tensors inside what models and layers return, in tensors, tuples, lists, dicts, named tuples and dataclasses."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch

from gradcam_fast._capture.containers import detach_tensors, feature_tensor, map_tensors, replace_tensor, tensors_in

A, B, INDICES = torch.tensor([1.0, 2.0]), torch.tensor([3.0]), torch.tensor([4])
Pair = namedtuple("Pair", ["maps", "rest"])


@dataclass
class Output:
    logits: torch.Tensor
    loss: float = 0.5


@pytest.mark.parametrize(
    ("output", "tensors"),
    [
        (A, [A]),
        ((A, "text", B), [A, B]),
        ([INDICES, None, A], [INDICES, A]),
        ({"maps": A, "more": {"deeper": B}}, [A]),
        (Pair(A, [B]), [A]),
        (Output(A), []),
        (None, []),
        ("text", []),
    ],
    ids=["tensor", "tuple", "list", "dict", "named tuple", "dataclass", "None", "str"],
)
def test_tensors_in_returns_the_tensors_directly_inside(output, tensors):
    assert [id(tensor) for tensor in tensors_in(output)] == [id(tensor) for tensor in tensors]


@pytest.mark.parametrize(
    ("output", "expected"), [((INDICES, A, B), A), ({"mask": INDICES > 0, "maps": B}, B), ([INDICES], None), ((), None)]
)
def test_the_feature_tensor_is_the_first_floating_one(output, expected):
    assert feature_tensor(output) is expected


@pytest.mark.parametrize(
    ("output", "replaced"),
    [
        (A, B),
        ((A, None), (B, None)),
        ([INDICES, A], [INDICES, B]),
        ({0: A, "one": None}, {0: B, "one": None}),
        (Pair(A, "rest"), Pair(B, "rest")),
        (OrderedDict(last=INDICES, first=A), OrderedDict(last=INDICES, first=B)),
    ],
    ids=["tensor", "tuple", "list", "dict", "named tuple", "ordered dict"],
)
def test_replace_tensor_keeps_the_container_and_its_other_members(output, replaced):
    result = replace_tensor(output, A, B)
    assert type(result) is type(replaced)
    if isinstance(result, torch.Tensor):
        assert result is B
    else:
        members = list(result.values()) if isinstance(result, dict) else list(result)
        expected = list(replaced.values()) if isinstance(replaced, dict) else list(replaced)
        assert all(member is value for member, value in zip(members, expected, strict=True))
        assert not isinstance(result, dict) or list(result) == list(replaced)
    assert feature_tensor(output) is A  # the output itself is unchanged


def test_map_tensors_reaches_every_depth_and_keeps_the_containers():
    nested = {"pair": Pair(A, [B, (INDICES, "text")]), "output": Output(A), "none": None}
    doubled = map_tensors(nested, lambda tensor: tensor * 2)
    assert type(doubled["pair"]) is Pair and doubled["none"] is None
    assert doubled["pair"].maps.tolist() == [2, 4]
    assert doubled["pair"].rest[0].tolist() == [6]
    assert doubled["pair"].rest[1][0].tolist() == [8] and doubled["pair"].rest[1][1] == "text"
    assert doubled["output"].logits.tolist() == [2, 4] and doubled["output"].loss == 0.5
    assert nested["pair"].maps is A and nested["output"].logits is A


def test_detached_tensors_share_memory_and_have_no_graph():
    weight = torch.ones(2, requires_grad=True)
    product = weight * A
    detached = detach_tensors({"logits": product, "all": [product]})
    for tensor in (detached["logits"], detached["all"][0]):
        assert not tensor.requires_grad and tensor.data_ptr() == product.data_ptr()
    assert product.requires_grad
