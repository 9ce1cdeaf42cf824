"""Names of a network's classes: from a file, ImageNet's, or 'class 7'; and the search for a class by its name."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["find_class", "imagenet_class_names", "numbered_class_names", "read_class_names"]

# An error message lists at most this many of the classes that match.
LISTED_MATCHES = 8


def read_class_names(path: Path, count: int) -> tuple[str, ...]:
    """Read the names of ``count`` classes.

    The file is text with one name per line, or JSON: a list of names, or an object from class number to name. If a
    JSON name is itself a list, as in Keras' ImageNet index, its last member is the name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another format, or another number of names.
    """
    if not path.is_file():
        raise FileNotFoundError(f"classes {path}: no such file")
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = _from_json(json.loads(text)) if path.suffix == ".json" else text.rstrip().splitlines()
    except (ValueError, KeyError) as error:  # JSON's and the text encoding's errors are ValueErrors
        raise ValueError(
            f"classes {path} cannot be read ({' '.join(str(error).split())}); expected one name per line, or JSON: "
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
        raise ValueError(f"it holds {content!r:.40}, which is neither a list nor an object")
    return [str(name[-1] if isinstance(name, list) and name else name) for name in content]


def imagenet_class_names() -> tuple[str, ...]:
    """The 1000 classes of ImageNet, from torchvision, in the order that all networks trained on ImageNet use."""
    from torchvision.models import EfficientNet_B0_Weights

    return tuple(EfficientNet_B0_Weights.DEFAULT.meta["categories"])


def numbered_class_names(count: int) -> tuple[str, ...]:
    """Names for classes that have none.

    Example:
        >>> numbered_class_names(2)
        ('class 0', 'class 1')
    """
    return tuple(f"class {number}" for number in range(count))


def find_class(class_or_name: str, names: Sequence[str]) -> int:
    """The number of a class, given as a number, a whole name, or a part of a name that no other name contains.

    Case is ignored. A whole name comes before a part of a name: with the classes "tabby" and "tabby cat", "tabby" is
    the first one.

    Raises:
        ValueError: no class matches, or several do; the message lists them.

    Example:
        >>> names = ["tabby", "tabby cat", "Egyptian cat"]
        >>> find_class("2", names), find_class("Tabby", names), find_class("egyptian", names)
        (2, 0, 2)
    """
    if re.fullmatch(r"[+-]?\d+", class_or_name):
        number = int(class_or_name)
        if not 0 <= number < len(names):
            raise ValueError(f"class {number} is out of range; this network has the classes 0 to {len(names) - 1}")
        return number
    folded = [name.casefold() for name in names]
    word = class_or_name.strip().casefold()
    pattern = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")
    for matches in (lambda name: name == word, lambda name: bool(pattern.search(name)), lambda name: word in name):
        numbers = [number for number, name in enumerate(folded) if word and matches(name)]
        if len(numbers) == 1:
            return numbers[0]
        if numbers:
            listed = ", ".join(f"{names[number]} ({number})" for number in numbers[:LISTED_MATCHES])
            more = f" and {len(numbers) - LISTED_MATCHES} more" if len(numbers) > LISTED_MATCHES else ""
            raise ValueError(
                f"{class_or_name!r} matches {len(numbers)} classes: {listed}{more}; give the number of one"
            )
    similar = [folded.index(name) for name in difflib.get_close_matches(word, folded, n=3)]
    hint = f"did you mean {' or '.join(f'{names[number]} ({number})' for number in similar)}?" if similar else ""
    raise ValueError(
        f"no class is named {class_or_name!r}; {hint or 'give the number of a class, or a part of its name'}"
    )
