"""Why a layer cannot be explained: one exception per reason, with the sentence that says so and the way out.

Knows nothing of how layers are found or run. A layer that was found automatically is looked for again when it proves
unfit; one that the caller named is refused with these words.
"""

from __future__ import annotations

from collections.abc import Sequence

WAY_OUT = "choose another layer, or layer=None to have one found"


class LayerError(Exception):
    """A layer cannot be explained."""


class LayerNotRun(LayerError, RuntimeError):
    """The layer did not run."""

    def __init__(self, name: str) -> None:
        super().__init__(f"layer {name!r} did not run in this forward; {WAY_OUT}")


class ScoreIndependent(LayerError, RuntimeError):
    """The score does not depend on the layer."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the score does not depend on layer {name!r} (its output is not used, or the model turns gradients off "
            f"there or behind it, as torch.utils.checkpoint does with use_reentrant=True); {WAY_OUT}"
        )


class ReentrantCheckpoint(LayerError, RuntimeError):
    """Between the layer and the score there is a checkpoint that allows no gradient of a part."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"behind layer {name!r} the model runs torch.utils.checkpoint with use_reentrant=True, which cannot be "
            f"differentiated in part; use use_reentrant=False, turn checkpointing off, or choose a layer behind it"
        )


class NotSpatial(LayerError, ValueError):
    """The layer's output cannot be read as maps of the images: of another shape or batch, or in more ways than one."""

    def __init__(self, name: str, shape: Sequence[int], batch: int, reason: object) -> None:
        super().__init__(f"layer {name!r} returns shape {tuple(shape)} for a batch of {batch}, {reason}; {WAY_OUT}")
