"""The values of an evaluation in a CSV file, to which rows are added as photos are done, and which a run continues."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...metrics import Comparison
from ..output_files import write_whole

__all__ = ["PhotoValues", "ValueTable"]

_FACTS = ("photo", "class", "class_name", "probability", "row")
# Paths need not be UTF-8.
_TEXT = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}


@dataclass(frozen=True)
class PhotoValues:
    """What was measured of one photo.

    Attributes:
        photo: its path, as it was given.
        number, name, probability: of the class; the probability is NaN where it is not known.
        values: by row of the table (a contender or baseline), one value for each metric.
    """

    photo: str
    number: int
    name: str
    probability: float
    values: dict[str, list[float]]


class ValueTable:
    """The values of all photos that are done, in memory and in ``values.csv``; ``settings.json`` says how they came.

    Args:
        folder: in which the files are.
        settings: what the values depend on.
        rows, metrics: the names of the table's rows and columns.
        resume: whether photos of an earlier run with the same settings are kept.

    Raises:
        FileExistsError: a file of that name is not of an evaluation.
        ValueError: the earlier run had other settings.
    """

    def __init__(
        self, folder: Path, settings: dict[str, Any], rows: Sequence[str], metrics: Sequence[str], *, resume: bool
    ) -> None:
        self._path, self._rows, self._metrics = folder / "values.csv", tuple(rows), tuple(metrics)
        self.photos: dict[str, PhotoValues] = {}
        earlier = _read_settings(folder)
        if resume and earlier is not None:
            if other := [name for name in settings if earlier.get(name) != settings[name]]:
                raise ValueError(
                    f"--resume: the values in {folder} were measured with {other[0]} {earlier.get(other[0])!r}, and "
                    f"now it is {settings[other[0]]!r}; give the same options, or another --out"
                )
            self.photos = {values.photo: values for values in self._read()}
        folder.mkdir(parents=True, exist_ok=True)
        # An interrupted run may have left half a line.
        write_whole(self._path, self._encoded(self.photos.values(), header=True))
        write_whole(folder / "settings.json", json.dumps({"gradcam_fast": "evaluation", **settings}).encode())

    def __contains__(self, photo: Path) -> bool:
        return str(photo) in self.photos

    def append(self, photos: list[PhotoValues]) -> list[PhotoValues]:
        """Add photos, in memory and to the file, and return them."""
        self.photos |= {values.photo: values for values in photos}
        with open(self._path, "ab") as file:
            file.write(self._encoded(photos))
        return photos

    def comparison(self) -> Comparison:
        """All values as a comparison, photos in the order in which they were done."""
        return Comparison(
            {
                row: {
                    metric: torch.tensor([photo.values[row][place] for photo in self.photos.values()])
                    for place, metric in enumerate(self._metrics)
                }
                for row in self._rows
            }
        )

    def _encoded(self, photos: Any, *, header: bool = False) -> bytes:
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        if header:
            writer.writerow([*_FACTS, *self._metrics])
        for photo in photos:
            for row in self._rows:
                facts = photo.photo, photo.number, photo.name, photo.probability, row
                writer.writerow([*facts, *photo.values[row]])
        return text.getvalue().encode(_TEXT["encoding"], _TEXT["errors"])

    def _read(self) -> Iterator[PhotoValues]:
        """The photos of which the file has every row."""
        if not self._path.is_file():
            return
        found: dict[str, PhotoValues] = {}
        with open(self._path, **_TEXT) as file:  # type: ignore[call-overload]
            for cells in csv.DictReader(file):
                try:
                    facts = cells["photo"], int(cells["class"]), cells["class_name"], float(cells["probability"])
                    values = [float(cells[metric]) for metric in self._metrics]
                except (KeyError, TypeError, ValueError):
                    continue
                found.setdefault(facts[0], PhotoValues(*facts, {})).values[cells["row"]] = values
        yield from (photo for photo in found.values() if all(row in photo.values for row in self._rows))


def _read_settings(folder: Path) -> dict[str, Any] | None:
    """How an earlier run's values came; None if there was none.

    Raises:
        FileExistsError: another program's files are in the way.
    """
    path = folder / "settings.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError:
        settings = {}
    is_own = isinstance(settings, dict) and settings.get("gradcam_fast") == "evaluation"
    in_the_way = [name for name in ("settings.json", "values.csv", "index.html") if os.path.lexists(folder / name)]
    if in_the_way and not is_own:
        raise FileExistsError(
            f"--out: {folder / in_the_way[0]} exists and is not of an evaluation; move it, or give another --out"
        )
    return settings if is_own else None
