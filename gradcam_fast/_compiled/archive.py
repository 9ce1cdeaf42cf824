"""Reads what a package says of itself, without running its code, and refuses what this process cannot run."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import torch

from .._version import __version__
from ..exceptions import IncompatiblePackage, UnreadablePackage
from .package_info import FORMAT, PackageInfo

__all__ = ["check_intact", "check_runs_here", "read_info"]

_TABLES = "_metadata.json"
# By torch's names; a processor runs what was made for those before its own.
_INSTRUCTION_SETS = ("DEFAULT", "AVX2", "AVX512")


def read_info(path: str | os.PathLike[str]) -> PackageInfo:
    """What a package says of itself.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadablePackage: it is damaged, is no package of gradcam_fast, or was made by a newer gradcam_fast.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"package {path}: no such file")
    tables = _tables(path)
    if tables is None:
        raise UnreadablePackage(f"{path} is a zip file, but no package; give a file of gradcam_fast.export")
    texts = next((table for table in tables if "gradcam_fast" in table), None)
    if texts is None:
        raise UnreadablePackage(
            f"{path} is a .pt2 package, but not one of gradcam_fast; make one with gradcam_fast.export"
        )
    try:
        number = int(texts["format"])
        if number <= FORMAT:
            return PackageInfo.from_texts(texts)
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise UnreadablePackage(
            f"{path} describes itself in a way that cannot be read ({type(error).__name__}: {error}); export it again"
        ) from None
    raise UnreadablePackage(
        f"{path} has format {number}, of gradcam_fast {texts['gradcam_fast']}; gradcam_fast {__version__} reads up to "
        f"format {FORMAT}: upgrade it, or export the package with this version"
    )


def _tables(path: Path) -> list[dict[str, str]] | None:
    """The tables of texts in a package; None if the file is a zip file, but no package."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if not any(name.endswith("/archive_format") for name in names):
                return None
            tables = [json.loads(archive.read(name)) for name in names if name.endswith(_TABLES)]
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, ValueError) as error:
        raise UnreadablePackage(
            f"{path} is cut off, damaged, or no .pt2 package ({error}); give a file of gradcam_fast.export"
        ) from None
    return [table for table in tables if isinstance(table, dict)]


def check_intact(path: str | os.PathLike[str]) -> None:
    """Refuse a package whose content does not have its checksums; torch would load and run it.

    Raises:
        UnreadablePackage: the message names the part.
    """
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise UnreadablePackage(f"{path} is damaged at {damaged}; copy or export it again")


def check_runs_here(path: str | os.PathLike[str], info: PackageInfo) -> None:
    """Refuse a package for another release of torch, or for a processor or device that this machine lacks.

    Raises:
        IncompatiblePackage: the message says what the package needs.
    """
    if _release(info.torch) != _release(torch.__version__):
        raise IncompatiblePackage(
            f"{path} was made with torch {info.torch}, but this is torch {torch.__version__}; only the same release "
            "loads it: export it again with this one, or install that one"
        )
    capability = torch.backends.cpu.get_cpu_capability()
    if not _runs(info.instruction_set, capability):
        raise IncompatiblePackage(
            f"{path} was made for processors with {info.instruction_set}, and this one has {capability}; export it on "
            "a machine such as this one"
        )
    if info.images.device.type == "cuda" and not torch.cuda.is_available():
        raise IncompatiblePackage(f"{path} was made for a CUDA device, and torch finds none on this machine")


def _release(version: str) -> str:
    return version.partition("+")[0]


def _runs(needed: str, there: str) -> bool:
    known = needed in _INSTRUCTION_SETS and there in _INSTRUCTION_SETS
    return needed == there or (known and _INSTRUCTION_SETS.index(needed) < _INSTRUCTION_SETS.index(there))
