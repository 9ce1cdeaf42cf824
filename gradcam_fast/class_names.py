"""Names of classes: from a list, a file, a model or published weights; and from a name to the number of its class."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "class_names", "find_class", "imagenet_class_names", "named", "names_of_model", "numbered_class_names",
    "read_class_names", "without_names",
]  # fmt: skip

# An error message lists at most this many of the classes that match.
LISTED_MATCHES = 8


def class_names(source: Any, count: int | None = None) -> tuple[str, ...]:
    """The names of all classes, in the order of the outputs.

    Args:
        source: a list of names; a dict from class index to name; the path of a file (:func:`read_class_names`); a
            weights enum of torchvision, or one of its members; or a model that has names (:func:`names_of_model`).
        count: how many classes there must be; None takes any number.

    Raises:
        TypeError: no names in there.
        ValueError: another number of names, or indices that are not 0, 1, 2 ...
        FileNotFoundError: there is no such file.

    Example:
        >>> class_names({"1": "dog", "0": "cat"})
        ('cat', 'dog')
    """
    if isinstance(source, (str, os.PathLike)):
        return read_class_names(Path(source), count)
    meta = getattr(getattr(source, "DEFAULT", source), "meta", None)
    if isinstance(meta, Mapping) and "categories" in meta:
        source = list(meta["categories"])
    elif hasattr(source, "named_modules"):
        names = names_of_model(source)
        if not names:
            raise TypeError(
                f"{type(source).__name__} has no names of classes (config.id2label, names or class_names); give a "
                "list, a dict or a file"
            )
        source = names
    by_index = _by_index(source)
    if sorted(by_index) != list(range(len(by_index))):
        raise ValueError(
            f"names has the indices {_listed(map(str, sorted(by_index)), 4)}, which are not all numbers from 0 to "
            f"{len(by_index) - 1}; name every class"
        )
    _check_count("names", len(by_index), count)
    return tuple(by_index[index].strip() or f"class {index}" for index in range(len(by_index)))


def read_class_names(path: Path, count: int | None = None) -> tuple[str, ...]:
    """Read the names of all classes, ``count`` of them if it is given.

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
    _check_count(f"classes {path}", len(names), count)
    return tuple(name.strip() or f"class {i}" for i, name in enumerate(names))


def _check_count(source: str, names: int, count: int | None) -> None:
    if count is not None and names != count:
        raise ValueError(f"{source} names {names} classes, but the network has {count} outputs")


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


def names_of_model(model: nn.Module) -> Sequence[str] | Mapping[int, str] | None:
    """The names that a model has: ``config.id2label`` (transformers), ``names`` (ultralytics) or ``class_names``.

    transformers' placeholders, LABEL_0, LABEL_1 ..., are no names.
    """
    places = (getattr(model, "config", None), "id2label"), (model, "names"), (model, "class_names")
    for holder, attribute in places:
        names = getattr(holder, attribute, None)
        if isinstance(names, (Mapping, list, tuple)) and names and not _are_placeholders(names):
            return names
    return None


def _are_placeholders(names: Mapping[int, str] | Sequence[str]) -> bool:
    values = names.values() if isinstance(names, Mapping) else names
    return all(isinstance(name, str) and re.fullmatch(r"LABEL_\d+", name) for name in values)


def named(wanted: Any, names: Sequence[str] | Mapping[int, str]) -> Any:
    """Class indices instead of class names, for ``target=``.

    Case does not matter. Of a name with synonyms, "tabby, tabby cat" as in ImageNet's lists, each of them will do if no
    other class has it.

    Args:
        wanted: a name; a list of B names, one per image; or a list of rows of K names: ``[["tabby", "lynx"]]`` explains
            both for every image.
        names: the name of each class, in the order of the logits, or a dict from class index to name. A network's
            weights often come with them: ``weights.meta["categories"]`` in torchvision. Where the model has them as
            ``model.config.id2label`` (transformers), ``model.names`` (ultralytics) or ``model.class_names``,
            ``target="tabby"`` works without this function, and so it does for ``Explainer(model, names=...)``.

    Returns:
        An integer for a name, else lists of integers in the same shape.

    Raises:
        TypeError: not a name, or names that are no strings.
        ValueError: no class has the name, with those that are most like it; or several have.

    Example:
        >>> from gradcam_fast import targets
        >>> names = ["tabby, tabby cat", "tiger cat", "lynx"]
        >>> targets.named("Tabby cat", names), targets.named([["lynx", "tabby"]], names)
        (0, [[2, 0]])
    """
    by_index = _by_index(names)
    return _indices(wanted, by_index)


def without_names(target: Any, model: nn.Module, names: Sequence[str] | None = None) -> Any:
    """A target of class names as class indices, by ``names`` or those that the model has; any other target as it is.

    Raises:
        TypeError: there are no names.
        ValueError: no class, or several, have a name.
    """
    if not _has_names(target):
        return target
    known = names or names_of_model(model)
    if not known:
        raise TypeError(
            f"target={target!r} names a class, but {type(model).__name__} has no names of classes (config.id2label, "
            "names or class_names); give a class index, Explainer(model, names=...), or "
            "target=gradcam_fast.targets.named(name, names)"
        )
    return named(target, known)


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
    by_index = dict(enumerate(names))
    word = class_or_name.strip().casefold()
    pattern = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")
    parts = [[index for index, name in by_index.items() if matches(name.casefold())] for matches in (
        lambda name: bool(pattern.search(name)), lambda name: word in name)]  # fmt: skip
    for numbers in (_whole_names(word, by_index), *parts):
        if word and len(numbers) == 1:
            return numbers[0]
        if word and numbers:
            listed = _listed([f"{names[number]} ({number})" for number in numbers], LISTED_MATCHES)
            raise ValueError(f"{class_or_name!r} matches {len(numbers)} classes: {listed}; give the number of one")
    near = [f"{names[number]} ({number})" for number in _near_classes(word, by_index)]
    hint = f"did you mean {' or '.join(near)}?" if near else "give the number of a class, or a part of its name"
    raise ValueError(f"no class is named {class_or_name!r}; {hint}")


def _has_names(target: Any) -> bool:
    if isinstance(target, (list, tuple)):
        return any(map(_has_names, target))
    return isinstance(target, str)


def _by_index(names: Any) -> dict[int, str]:
    if isinstance(names, str) or not isinstance(names, (Mapping, Sequence)):
        raise TypeError(
            f"names={names!r:.60} is a {type(names).__name__}; give a list of the classes' names, or a dict"
        )
    by_index = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
    for index, name in by_index.items():
        if not isinstance(name, str):
            raise TypeError(f"names holds {name!r} for class {index}, a {type(name).__name__}; give strings")
    # Configurations that were read from JSON have strings as keys.
    return {int(index): name for index, name in by_index.items()}


def _indices(wanted: Any, names: Mapping[int, str]) -> Any:
    if isinstance(wanted, (list, tuple)):
        return [_indices(member, names) for member in wanted]
    if not isinstance(wanted, str):
        raise TypeError(f"{wanted!r} is a {type(wanted).__name__}; give the name of a class, or lists of names")
    word = wanted.strip().casefold()
    matches = _whole_names(word, names)
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ValueError(f"{wanted!r} is the name of classes {', '.join(map(str, matches))}; give the index of one")
    near = " or ".join(repr(names[index]) for index in _near_classes(word, names))
    some = ", ".join(map(repr, list(names.values())[:3]))
    hint = f"did you mean {near}?" if near else f"the {len(names)} classes have names such as {some}"
    raise ValueError(f"no class is named {wanted!r}; {hint}")


def _whole_names(word: str, names: Mapping[int, str]) -> list[int]:
    """The classes of that name; of names with synonyms, if no other class has it, those that have it as a synonym."""
    whole = [index for index, name in names.items() if name.strip().casefold() == word]
    return whole or [index for index, name in names.items() if word in _synonyms(name)]


def _synonyms(name: str) -> list[str]:
    return [synonym.strip().casefold() for synonym in name.split(",")]


def _near_classes(word: str, names: Mapping[int, str]) -> list[int]:
    """Up to three classes with a name or synonym like the word, or else with the word in it."""
    by_synonym = {synonym: i for i, name in names.items() for synonym in (*_synonyms(name), name.casefold())}
    parts = [synonym for synonym in by_synonym if word and word in synonym]
    return list(
        dict.fromkeys(by_synonym[near] for near in difflib.get_close_matches(word, by_synonym, n=3) or parts[:3])
    )


def _listed(words: Any, most: int) -> str:
    words = list(words)
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")
