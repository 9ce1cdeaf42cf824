"""What a network was published with, as a recipe for `Preprocess`: the one door to all kinds of sources."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from .steps import Step

__all__ = ["Recipe", "recipe_of"]


class Recipe(NamedTuple):
    """A preprocessing read from its description.

    Attributes:
        steps: resizing, cutting and padding.
        mean, std: per channel on the [0,1] scale.
        reverse_channels: whether the input is BGR.
        title: the source, for messages.
        original: from a PIL image to (C,h,w), the preprocessing itself; None if there is nothing to run.
    """

    steps: tuple[Step, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    reverse_channels: bool = False
    title: str = ""
    original: Callable[[Any], Any] | None = None


def recipe_of(source: Any) -> Recipe:
    """Read the preprocessing of any source that :meth:`gradcam_fast.Preprocess.of` takes.

    Raises:
        TypeError: a source of another kind.
        ValueError: a part of the preprocessing cannot be followed.
    """
    if isinstance(source, type) and hasattr(source, "DEFAULT"):  # an enum of torchvision's weights
        source = source.DEFAULT
    if hasattr(source, "transforms") and hasattr(source, "meta"):  # one of its members
        source = source.transforms()
    for processor in (source, *(getattr(source, name, None) for name in ("image_processor", "feature_extractor"))):
        if hasattr(processor, "val_transforms"):  # the processor of transformers for models of timm
            from .of_transforms import recipe_of_transform

            return recipe_of_transform(processor.val_transforms)
        if hasattr(processor, "image_mean") or hasattr(processor, "do_resize"):
            from .of_processors import recipe_of_processor

            return recipe_of_processor(processor)
    config = getattr(source, "pretrained_cfg", source)
    config = config.to_dict() if hasattr(config, "input_size") and hasattr(config, "to_dict") else config
    if isinstance(config, Mapping) and "input_size" in config:
        from .of_transforms import recipe_of_timm

        return recipe_of_timm(config)
    if (callable(source) and not hasattr(source, "state_dict")) or _is_transform(source):
        from .of_transforms import recipe_of_transform

        return recipe_of_transform(source)
    raise TypeError(
        f"{type(source).__name__} is no preprocessing that is known; give weights or transforms of torchvision, a "
        "model of timm, an image processor of transformers, or Preprocess(size, mean=..., std=..., crop=...)"
    )


def _is_transform(source: Any) -> bool:
    """Whether a module is a transform: torchvision's are modules too."""
    from torch import nn

    members = list(source.children()) if type(source) is nn.Sequential else [source]
    return bool(members) and all(".transforms" in type(member).__module__ for member in members)
