"""A memory of bounded size: the entries that were used last."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

__all__ = ["Recent"]

_K = TypeVar("_K")
_V = TypeVar("_V")


class Recent(Generic[_K, _V]):
    """The ``most`` entries used last; older ones are forgotten. Several threads may use it.

    Example:
        >>> recent = Recent(2)
        >>> for number in range(3):
        ...     recent[number] = str(number)
        >>> recent.get(0), recent.get(2), len(recent)
        (None, '2', 2)
    """

    def __init__(self, most: int = 64) -> None:
        self._most = most
        self._entries: OrderedDict[_K, _V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: _K) -> bool:
        return key in self._entries

    def get(self, key: _K) -> _V | None:
        """The entry, which is now the last one used; None if it is unknown or forgotten."""
        value = self._entries.get(key)
        try:
            self._entries.move_to_end(key)
        except KeyError:  # unknown, or another thread has made it forgotten
            pass
        return value

    def __setitem__(self, key: _K, value: _V) -> None:
        self._entries[key] = value
        self.get(key)
        while len(self._entries) > self._most:
            try:
                self._entries.popitem(last=False)
            except KeyError:
                break

    def setdefault(self, key: _K, default: _V) -> _V:
        """The entry, or ``default``, which becomes it."""
        value = self.get(key)
        if value is None:
            self[key] = value = default
        return value

    def values(self) -> list[_V]:
        """All entries, the last used ones last."""
        return list(self._entries.values())  # in one step, so that no other thread changes it meanwhile

    def forget(self, key: _K) -> None:
        """Forget one entry, if it is known."""
        self._entries.pop(key, None)

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()
