"""Weight files of every make are read without running code and put where they belong, or refused in a sentence."""

import argparse
import os
import pickle
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from support.refusals import assert_says
from torch import nn

from gradcam_fast.pipeline.networks.weights import build_with_weights, read_weights


def build(classes=None):
    """A small network of 10 classes, or another number, with two heads."""
    return nn.ModuleDict(
        {
            "stem": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
            "head": nn.Linear(4, classes or 10),
            "aux": nn.Conv2d(4, classes or 10, 1),
        }
    )


def same(model, weights):
    own = model.state_dict()
    return own.keys() == weights.keys() and all(torch.equal(own[name], weights[name]) for name in weights)


class Runs:
    """What a pickle can do to whoever reads it."""

    def __reduce__(self):
        return os.mkdir, ("was-run",)


WRAPPINGS = {
    "bare": lambda weights: weights,
    "ordered": OrderedDict,
    "DataParallel": lambda weights: {f"module.{name}": tensor for name, tensor in weights.items()},
    "compiled in DataParallel": lambda weights: {f"module._orig_mod.{name}": weights[name] for name in weights},
    "state_dict": lambda weights: {"epoch": 3, "state_dict": weights, "optimizer": {"lr": 0.1, "state": {}}},
    "model, its average and options": lambda weights: {
        "model": weights,
        "model_ema": {name: tensor + 1 for name, tensor in weights.items()},
        "args": argparse.Namespace(model="resnet18", lr=0.1),
    },
    "lightning": lambda weights: {"state_dict": {f"model.{name}": weights[name] for name in weights}, "epoch": 1},
    "another name": lambda weights: {"epoch": 3, "net": weights},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_weights_are_found_in_what_training_scripts_save(tmp_path, wrapping):
    weights = build().state_dict()
    torch.save(WRAPPINGS[wrapping](weights), tmp_path / "w.pt")
    assert same(build_with_weights(build, read_weights(tmp_path / "w.pt"), "w"), weights)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_safetensors_are_read(tmp_path, prefix):
    weights = build().state_dict()
    save_file({prefix + name: tensor for name, tensor in weights.items()}, tmp_path / "w.safetensors")
    assert same(build_with_weights(build, read_weights(tmp_path / "w.safetensors"), "w"), weights)


def test_the_old_format_of_torch_is_read(tmp_path):
    weights = build().state_dict()
    torch.save(weights, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert same(build_with_weights(build, read_weights(tmp_path / "w.pth"), "w"), weights)


def test_half_precision_weights_become_the_models_own(tmp_path):
    weights = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in build().state_dict().items()
    }
    torch.save(weights, tmp_path / "w.pt")
    weight = build_with_weights(build, read_weights(tmp_path / "w.pt"), "w").state_dict()["head.weight"]
    assert weight.dtype == torch.float32 and torch.equal(weight, weights["head.weight"].float())


def test_a_prefix_that_is_the_models_own_stays():
    def nested(classes=None):
        return nn.ModuleDict({"model": build(classes)})

    weights = nested().state_dict()
    assert same(build_with_weights(nested, weights, "w"), weights)
    assert same(build_with_weights(nested, {f"module.{name}": weights[name] for name in weights}, "w"), weights)


def test_the_model_gets_the_number_of_classes_that_the_weights_have():
    weights = build(7).state_dict()
    model = build_with_weights(build, weights, "w")
    assert model["head"].out_features == 7 and same(model, weights)


def test_counters_that_only_training_reads_may_be_missing():
    weights = {name: tensor for name, tensor in build().state_dict().items() if "num_batches" not in name}
    assert torch.equal(build_with_weights(build, weights, "w")["head"].weight, weights["head.weight"])


def test_heads_that_only_training_uses_may_be_missing_where_it_is_said():
    weights = {name: tensor for name, tensor in build().state_dict().items() if not name.startswith("aux")}
    assert torch.equal(build_with_weights(build, weights, "w", unused=("aux.",))["head"].weight, weights["head.weight"])
    with pytest.raises(ValueError, match=r"missing: aux\.weight, aux\.bias"):
        build_with_weights(build, weights, "w")


def without_head(weights):
    return {name: tensor for name, tensor in weights.items() if not name.startswith("head")}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (without_head, ["missing: head.weight, head.bias"]),
        (lambda weights: {**weights, "tail.weight": torch.ones(1)}, ["unknown: tail.weight"]),
        (
            lambda weights: {**weights, "stem.0.weight": torch.ones(4, 3, 7, 7)},
            ["stem.0.weight is (4, 3, 7, 7) instead of (4, 3, 3, 3)"],
        ),
        (  # one head of 7 classes, the other of 10
            lambda weights: {**weights, "head.weight": torch.ones(7, 4), "head.bias": torch.ones(7)},
            ["head.weight is (7, 4) instead of (10, 4)", "head.bias is (7,) instead of (10,)"],
        ),
        (
            lambda weights: {f"layer.{i}.weight": torch.ones(1) for i in range(50)},
            ["missing: stem.0.weight, stem.0.bias, stem.1.weight and 7 more", "unknown: layer.0.weight", "and 47 more"],
        ),
    ],
)
def test_weights_of_another_network_are_refused_by_name_and_shape(change, parts):
    with pytest.raises(ValueError) as refusal:
        build_with_weights(build, change(build().state_dict()), "w.pt into a network")
    assert_says(refusal, ValueError, ["w.pt into a network", *parts])


def test_another_number_of_classes_is_refused_where_the_model_has_no_choice():
    with pytest.raises(ValueError, match=r"head\.weight is \(7, 4\) instead of \(10, 4\)"):
        build_with_weights(build, build(7).state_dict(), "w", takes_class_count=False)


@pytest.mark.parametrize("old", [False, True])
def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path, monkeypatch, old):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": build().state_dict(), "more": Runs()}, "w.pt", _use_new_zipfile_serialization=not old)
    with pytest.raises(ValueError) as refusal:
        read_weights(tmp_path / "w.pt")
    assert_says(refusal, ValueError, [str(tmp_path / "w.pt"), "could run code", "model.state_dict()"])
    assert ("posix.mkdir" in str(refusal.value)) is not old
    assert not (tmp_path / "was-run").exists()
    with open("w.pt", "wb") as file:  # the same pickle without torch's wrapping
        pickle.dump(Runs(), file, protocol=2)
    with pytest.raises(ValueError, match="could run code"):
        read_weights(tmp_path / "w.pt")
    assert not (tmp_path / "was-run").exists()


def test_a_whole_model_is_refused_with_what_to_save_instead(tmp_path):
    torch.save(build(), tmp_path / "w.pt")
    with pytest.raises(ValueError) as refusal:
        read_weights(tmp_path / "w.pt")
    assert_says(refusal, ValueError, ["torch.nn.modules", "torch.save(model.state_dict(), FILE)"])


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\3\4 no archive", b"\xff" * 99])
def test_what_is_no_weight_file_is_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as refusal:
        read_weights(tmp_path / name)
    assert_says(refusal, ValueError, [str(tmp_path / name)])


def test_a_truncated_file_is_refused_by_name(tmp_path):
    torch.save(build().state_dict(), tmp_path / "w.pt")
    save_file(build().state_dict(), tmp_path / "w.safetensors")
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(ValueError) as refusal:
            read_weights(path)
        assert_says(refusal, ValueError, [str(path), "cannot be read"])


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ({"epoch": 3, "lr": 0.1}, "a dict of epoch, lr"),
        ({}, "an empty dict"),
        (torch.ones(2), "a Tensor"),
        ({"a": {"x": torch.ones(1)}, "b": {"x": torch.ones(1)}}, "a dict of a, b"),
    ],
)
def test_where_the_weights_are_must_be_obvious(tmp_path, content, kind):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError) as refusal:
        read_weights(tmp_path / "w.pt")
    assert_says(refusal, ValueError, [f"holds {kind}, where no state_dict was found"])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"weights .*w\.pt: no such file"):
        read_weights(tmp_path / "w.pt")
