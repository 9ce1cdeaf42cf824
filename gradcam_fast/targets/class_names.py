"""Class names as targets: from names to the indices that ``target=`` takes, and the names that a model itself has."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["named", "without_names"]


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
            ``target="tabby"`` works without this function.

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


def without_names(target: Any, model: nn.Module) -> Any:
    """A target of class names as class indices, by the names that the model has; any other target as it is.

    Raises:
        TypeError: the model has no names.
        ValueError: no class, or several, have a name.
    """
    if not _has_names(target):
        return target
    names = _names_of(model)
    if not names:
        raise TypeError(
            f"target={target!r} names a class, but {type(model).__name__} has no names of classes (config.id2label, "
            "names or class_names); give a class index, or target=gradcam_fast.targets.named(name, names)"
        )
    return named(target, names)


def _has_names(target: Any) -> bool:
    if isinstance(target, (list, tuple)):
        return any(map(_has_names, target))
    return isinstance(target, str)


def _names_of(model: nn.Module) -> Sequence[str] | Mapping[int, str] | None:
    places = (getattr(model, "config", None), "id2label"), (model, "names"), (model, "class_names")
    for holder, attribute in places:
        names = getattr(holder, attribute, None)
        if isinstance(names, (Mapping, list, tuple)) and names:
            return names
    return None


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
    whole = [index for index, name in names.items() if name.strip().casefold() == word]
    found = whole or [index for index, name in names.items() if word in _synonyms(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{wanted!r} is the name of classes {', '.join(map(str, found))}; give the index of one")
    raise ValueError(f"no class is named {wanted!r}; {_near(word, names)}")


def _synonyms(name: str) -> list[str]:
    return [synonym.strip().casefold() for synonym in name.split(",")]


def _near(word: str, names: Mapping[int, str]) -> str:
    by_synonym = {synonym: name for name in names.values() for synonym in (*_synonyms(name), name.casefold())}
    parts = [synonym for synonym in by_synonym if word and word in synonym]
    near = dict.fromkeys(by_synonym[match] for match in difflib.get_close_matches(word, by_synonym, n=3) or parts[:3])
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    some = ", ".join(map(repr, list(names.values())[:3]))
    return f"the {len(names)} classes have names such as {some}"
