"""Pipelines of transformers: objects around a model that also hold its preprocessing."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["model_inside", "prepares_photos"]


def model_inside(value: Any) -> Any:
    """The model of a pipeline; anything else as it is."""
    return value.model if _is_pipeline(value) else value


def prepares_photos(value: Any) -> bool:
    """Whether a value is a pipeline that has an image processor."""
    return _is_pipeline(value) and value.image_processor is not None


def _is_pipeline(value: Any) -> bool:
    # transformers is not imported for that.
    kind = getattr(sys.modules.get("transformers.pipelines.base"), "Pipeline", None)
    return kind is not None and isinstance(value, kind)
