"""The exceptions a user may catch: one class per reason why a model, layer or score cannot be explained.

Each class also derives from a built-in exception (TypeError, ValueError or RuntimeError). Wrong arguments raise a plain
TypeError or ValueError.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "CannotCompile",
    "ExplanationError",
    "HeadNotReplayable",
    "IncompatiblePackage",
    "LayerError",
    "LayerNotRun",
    "LibraryMissing",
    "NoLayerFound",
    "NoSuchCall",
    "NotSpatial",
    "PackageError",
    "PhotoError",
    "PicturesMixed",
    "ReentrantCheckpoint",
    "ScoreDetached",
    "ScoreIndependent",
    "UnreadablePackage",
    "UnreadablePhotoError",
    "UnsupportedModel",
]

_OTHER_LAYER = "choose another layer, or layer=None to have one found"


class ExplanationError(Exception):
    """Base class of all exceptions in this module."""


class UnsupportedModel(ExplanationError, TypeError):
    """The model is of a kind that cannot be explained: scripted, quantised, sharded, exported ..."""


class CannotCompile(ExplanationError, RuntimeError):
    """An explanation cannot be compiled: it cannot be traced, or no compiler works; the message says what to change."""


class ScoreDetached(ExplanationError, RuntimeError):
    """The score has no gradient at all: it was detached, or the model turns gradients off."""


class PhotoError(ExplanationError):
    """One photo cannot be explained, and the others can; the message begins with its path."""


class UnreadablePhotoError(PhotoError, ValueError):
    """A file is missing, damaged, no photo, too large, or of unknown scale of values."""


class NoLayerFound(ExplanationError, ValueError):
    """The model has no spatial feature map that the score depends on."""


class LibraryMissing(ExplanationError, RuntimeError):
    """The compiled operator for a device was not built."""

    def __init__(self, device: str, reason: str, command: str) -> None:
        super().__init__(f"there is no library for {device}: {reason}. To build it, run: {command}")


class PackageError(ExplanationError):
    """Base class of the reasons why an exported explanation cannot be used."""


class UnreadablePackage(PackageError, ValueError):
    """The file is damaged, holds no exported explanation, or one that only a newer gradcam_fast reads."""


class IncompatiblePackage(PackageError, RuntimeError):
    """The package was exported for another torch release, device or processor."""


class LayerError(ExplanationError):
    """Base class of the reasons why one layer cannot be explained.

    If the layer was found automatically, this error starts a new search. If the caller named the layer, the error
    reaches the caller.
    """


class LayerNotRun(LayerError, RuntimeError):
    """The layer did not run in the forward."""

    def __init__(self, name: str) -> None:
        super().__init__(f"layer {name!r} did not run in this forward; {_OTHER_LAYER}")


class NoSuchCall(LayerError, ValueError):
    """The layer has no call in the forward that is the one asked for, or none that sees the images."""

    def __init__(self, name: str, calls: int, reason: str) -> None:
        last = "" if calls < 2 else f" to {calls - 1}"
        times = "once" if calls == 1 else f"{calls} times"
        super().__init__(f"layer {name!r} ran {times} in this forward, {reason}; give call=0{last}, or another layer")


class ScoreIndependent(LayerError, RuntimeError):
    """The score does not depend on the layer."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the score does not depend on layer {name!r} (its output is not used, or the model turns gradients off "
            f"there or behind it, as torch.utils.checkpoint does with use_reentrant=True); {_OTHER_LAYER}"
        )


class HeadNotReplayable(LayerError, RuntimeError):
    """What lies behind the layer cannot be run again by itself, on changed activations."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(
            f"what lies behind layer {name!r} cannot be run again on changed activations: {reason}; choose another "
            "layer, or a method that needs one forward only, such as method='gradcam'"
        )


class PicturesMixed(LayerError, ValueError):
    """The layer's maps are not of one picture each, of samples that hold several, such as the frames of a clip."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(
            f"layer {name!r} {reason}, so that there is no map for each picture; choose a layer before the pictures "
            "are brought together, or name one call of the layer with call="
        )


class ReentrantCheckpoint(LayerError, RuntimeError):
    """Between layer and score is a reentrant checkpoint, which only a backward over the whole graph can pass."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"behind layer {name!r} the model runs torch.utils.checkpoint with use_reentrant=True, which cannot be "
            f"differentiated in part; use use_reentrant=False, turn checkpointing off, or choose a layer behind it"
        )


class NotSpatial(LayerError, ValueError):
    """The layer's output cannot be read as feature maps of the images, or can be read in several ways."""

    def __init__(self, name: str, shape: Sequence[int], batch: int, reason: object) -> None:
        returned = f"layer {name!r} returns shape {tuple(shape)} for a batch of {batch}"
        super().__init__(f"{returned}, {reason}; {_OTHER_LAYER}")
