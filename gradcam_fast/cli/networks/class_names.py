"""The names of a network's classes: from a file, from ImageNet, or by number.

Knows nothing of networks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["imagenet_class_names", "numbered", "read_class_names"]


def read_class_names(path: Path, count: int) -> tuple[str, ...]:
    """Read the names of ``count`` classes.

    The file is text with one name per line, or JSON: a list of names, or an object from class number to name. Where a
    JSON name is itself a list, as in Keras' ImageNet index, its last member counts.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read so, or names another number of classes.
    """
    if not path.is_file():
        raise FileNotFoundError(f"classes {path}: no such file")
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = _from_json(json.loads(text)) if path.suffix == ".json" else text.rstrip().splitlines()
    except (ValueError, KeyError) as error:  # JSON's and the text encoding's errors are ValueErrors
        raise ValueError(
            f"classes {path} cannot be read ({' '.join(str(error).split())}); expected one name per line, or JSON, "
            'a list of names or {"0": name, ...}'
        ) from None
    if len(names) != count:
        raise ValueError(f"classes {path} names {len(names)} classes, but the network has {count} outputs")
    return tuple(name.strip() or f"class {i}" for i, name in enumerate(names))


def _from_json(content: Any) -> list[str]:
    if isinstance(content, dict):
        numbers = sorted(map(int, content))
        if numbers != list(range(len(content))):
            raise ValueError(f"its {len(content)} keys are not the numbers from 0 to {len(content) - 1}")
        content = [content[str(number)] for number in numbers]
    if not isinstance(content, list):
        raise ValueError(f"it holds a {type(content).__name__}")
    return [str(name[-1] if isinstance(name, list) and name else name) for name in content]


def imagenet_class_names() -> tuple[str, ...]:
    """The 1000 classes of ImageNet, in the order in which every network trained on them counts; from torchvision."""
    from torchvision.models import EfficientNet_B0_Weights

    return tuple(EfficientNet_B0_Weights.DEFAULT.meta["categories"])


def numbered(count: int) -> tuple[str, ...]:
    """Names for classes that have none.

    Example:
        >>> numbered(2)
        ('class 0', 'class 1')
    """
    return tuple(f"class {number}" for number in range(count))
