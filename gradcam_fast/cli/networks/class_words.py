"""A class by its number or by a word of its name. Knows nothing of networks."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

__all__ = ["find_class"]

# A message with more matches than this helps nobody.
SHOWN = 8


def find_class(wanted: str, names: Sequence[str]) -> int:
    """The number of the class that ``wanted`` means: a number, a whole name, or words that one name alone contains.

    Case does not matter. A whole name counts before a part: "tabby" is "tabby" where there is "tabby cat" too.

    Raises:
        ValueError: no class, or several; the message has those.

    Example:
        >>> names = ["tabby", "tabby cat", "Egyptian cat"]
        >>> find_class("2", names), find_class("Tabby", names), find_class("egyptian", names)
        (2, 0, 2)
    """
    if re.fullmatch(r"[+-]?\d+", wanted):
        number = int(wanted)
        if not 0 <= number < len(names):
            raise ValueError(
                f"class {number} is out of range; this network has {len(names)}, from 0 to {len(names) - 1}"
            )
        return number
    folded = [name.casefold() for name in names]
    word = wanted.strip().casefold()
    pattern = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")
    for fits in (lambda name: name == word, lambda name: bool(pattern.search(name)), lambda name: word in name):
        found = [number for number, name in enumerate(folded) if word and fits(name)]
        if len(found) == 1:
            return found[0]
        if found:
            shown = ", ".join(f"{names[number]} ({number})" for number in found[:SHOWN])
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            raise ValueError(f"{wanted!r} may be any of {len(found)} classes: {shown}{more}; give one of these numbers")
    near = [folded.index(name) for name in difflib.get_close_matches(word, folded, n=3)]
    hint = f"; did you mean {' or '.join(f'{names[number]} ({number})' for number in near)}?" if near else ""
    raise ValueError(f"no class is named {wanted!r}{hint or '; give a number, or a word of its name'}")
