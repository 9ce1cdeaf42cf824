"""The public exceptions: each is also a built-in exception, and is raised for its own reason."""

import pytest
import torch
from support.checkpointed import reentrant, twins
from support.networks import ConvNet, DeadEnds
from support.refusals import assert_says
from support.torchscript import scripted
from torch import nn

from gradcam_fast import exceptions, explain

# Raised in tests/compiled/, tests/ops/test_backend.py and tests/test_packages.py.
RAISED_ELSEWHERE = ["CannotCompile", "IncompatiblePackage", "LibraryMissing", "PackageError", "UnreadablePackage"]
LAYER_ERRORS = [
    "HeadNotReplayable",
    "LayerNotRun",
    "NoSuchCall",
    "NotSpatial",
    "PicturesMixed",
    "ReentrantCheckpoint",
    "ScoreIndependent",
]


def flat():
    """A network without feature maps."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5))


class MeanOfPictures(ConvNet):
    """Takes several pictures a sample, and sees their mean."""

    def forward(self, clips):
        return super().forward(clips.mean(1))


class MeanOfImages(ConvNet):
    """The prediction of an image depends on the others of its batch."""

    def forward(self, images):
        logits = super().forward(images)
        return (logits - logits.mean(0)).tanh()


def reentrant_checkpoint():
    return twins(reentrant)[1]


# Exception: (built-in exception, model, arguments of explain, what the message says).
RAISED = {
    "LayerNotRun": (RuntimeError, DeadEnds, {"layer": "never_run"}, ("'never_run'", "did not run", "layer=None")),
    "ScoreIndependent": (
        RuntimeError,
        DeadEnds,
        {"layer": "thrown_away"},
        ("'thrown_away'", "does not depend", "layer=None"),
    ),
    "ReentrantCheckpoint": (
        RuntimeError,
        reentrant_checkpoint,
        {"layer": "before"},
        ("'before'", "use_reentrant=True", "use_reentrant=False"),
    ),
    "NotSpatial": (ValueError, ConvNet, {"layer": "head.4"}, ("'head.4'", "(3, 5)", "batch of 3", "layer=None")),
    "NoSuchCall": (
        ValueError,
        ConvNet,
        {"layer": "features.3", "call": 2},
        ("'features.3'", "ran once", "call=2", "call=0"),
    ),
    "PicturesMixed": (
        ValueError,
        MeanOfPictures,
        {"layer": "features.3"},
        ("'features.3'", "picture", "before the pictures", "call="),
    ),
    "HeadNotReplayable": (
        RuntimeError,
        MeanOfImages,
        {"layer": "features.1", "method": "ablation", "target": 1},
        ("'features.1'", "cannot be run again", "method='gradcam'"),
    ),
    "NoLayerFound": (ValueError, flat, {}, ("Sequential", "no spatial feature map", "layer=")),
    "ScoreDetached": (
        RuntimeError,
        ConvNet,
        {"target": lambda logits: logits.detach()[:, 0]},
        ("ConvNet", "detached", "still attached"),
    ),
    "UnsupportedModel": (TypeError, lambda: scripted(flat()), {}, ("RecursiveScriptModule", "hooks", "nn.Module")),
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("name", RAISED)
def test_each_exception_is_raised_for_its_reason_and_is_the_built_in_one_too(name, images):
    builtin, make_model, arguments, parts = RAISED[name]
    if name == "PicturesMixed":
        images = torch.stack([images, images / 2, images / 3], 1)
    with pytest.raises(builtin) as refusal:
        explain(make_model(), images, **arguments)
    assert refusal.type is getattr(exceptions, name)
    assert_says(refusal, exceptions.ExplanationError, parts)


def test_all_exceptions_are_public_and_derive_from_one_base():
    defined = {
        name for name, value in vars(exceptions).items() if getattr(value, "__module__", "") == exceptions.__name__
    }
    others = {"ExplanationError", "LayerError", "PhotoError", "UnreadablePhotoError", *RAISED_ELSEWHERE}
    assert set(exceptions.__all__) == defined == {*others, *RAISED}
    assert all(issubclass(getattr(exceptions, name), exceptions.ExplanationError) for name in defined)


def test_a_layer_error_is_one_that_another_layer_may_avoid():
    derived = [name for name in RAISED if issubclass(getattr(exceptions, name), exceptions.LayerError)]
    assert sorted(derived) == LAYER_ERRORS


@pytest.mark.parametrize("layer", ["features.3", None])
def test_a_detached_score_of_a_named_layer_is_independent_of_it(layer, images):
    expected = exceptions.ScoreIndependent if layer else exceptions.ScoreDetached
    with pytest.raises(expected):
        explain(ConvNet(), images, layer=layer, target=lambda logits: logits.detach()[:, 0])


def test_wrong_arguments_raise_plain_built_in_exceptions(images):
    for arguments, builtin in (({"method": "grad-cam"}, ValueError), ({"topk": 2.0}, TypeError)):
        with pytest.raises(builtin) as refusal:
            explain(ConvNet(), images, **arguments)
        assert refusal.type is builtin


def test_a_remembered_layer_that_raises_a_layer_error_is_searched_for_again():
    """A switch decides which of two convolutions runs, so that the remembered layer no longer runs."""

    class Switch(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.use_second = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), True

        def forward(self, images):
            return (self.second if self.use_second else self.first)(images).mean((2, 3))

    model, images = Switch().eval(), torch.randn(2, 3, 8, 8)
    assert explain(model, images, relu=False).layer == "second"
    model.use_second = False
    assert explain(model, images, relu=False).layer == "first"
