"""Where a network comes from, as plain values: another process can load the same network from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from . import networks

if TYPE_CHECKING:
    from .networks import Network

__all__ = ["DTYPE_NAMES", "NetworkSource"]

PACKAGE_SUFFIX = ".pt2"
DTYPE_NAMES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class NetworkSource:
    """The name of a network or the path of a package, with what is said about it; it can be pickled.

    Attributes:
        model: as the ``name`` of :func:`.networks.load_network`, or the path of a package (``.pt2``).
        weights, classes, size, mean, std, crop, probabilities, download: as for :func:`.networks.load_network`; a
            package brings its own.
        device: where the network runs; None for a CUDA device if there is one.
        dtype: in what type it runs, one of `DTYPE_NAMES`.
    """

    model: str
    weights: str | None = None
    classes: Path | None = None
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop: float | Literal["auto"] | None = "auto"
    probabilities: str | None = "auto"
    download: bool = False
    device: str | None = None
    dtype: str = "float32"

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> NetworkSource:
        """A source from what JSON or YAML holds: lists for sizes and numbers of channels, text for paths.

        Raises:
            ValueError: the model is missing, or a name is unknown.

        Example:
            >>> NetworkSource.of({"model": "resnet18", "size": 64}).size
            (64, 64)
        """
        known = [field.name for field in fields(cls)]
        if unknown := sorted(values.keys() - set(known)):
            raise ValueError(f"{unknown[0]!r} is unknown; give of {', '.join(known)} what the network needs")
        if not isinstance(values.get("model"), str):
            raise ValueError("model is missing; give the name of a network, or the path of a package")
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        if isinstance(given.get("size"), int):
            given["size"] = (given["size"], given["size"])
        if given.get("classes") is not None:
            given["classes"] = Path(given["classes"])
        return cls(**given)

    @property
    def is_package(self) -> bool:
        """Whether this is a package, in the place of a network."""
        return self.model.endswith(PACKAGE_SUFFIX)

    def placement(self) -> tuple[torch.device, torch.dtype]:
        """Where and in what type the network runs.

        Raises:
            ValueError: the device does not work on this machine, or is none of the package's kind.
        """
        if self.is_package:
            return self._placement_of_package()
        if self.device is None:
            return torch.device("cuda" if torch.cuda.is_available() else "cpu"), getattr(torch, self.dtype)
        try:
            device = torch.device(self.device)
            torch.empty(1, device=device).cpu()
        except Exception as error:  # every backend reports a missing device in its own way
            reason = str(error).partition("\n")[0]
            raise ValueError(f"--device: {self.device!r} does not work on this machine ({reason}); give cpu") from None
        return device, getattr(torch, self.dtype)

    def load(self) -> Network:
        """The network, on the CPU; a package on the device that it was exported for.

        Raises:
            ValueError: an option that only a network takes, given for a package; or as the functions that load.
        """
        if self.is_package:
            from .networks.packaged import load_package

            self._refuse_options_of_networks()
            return load_package(Path(self.model), self.device)
        names = ("weights", "classes", "size", "mean", "std")
        given: dict[str, Any] = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return networks.load_network(
            self.model, crop=self.crop, probabilities=self.probabilities, download=self.download, **given
        )

    def _refuse_options_of_networks(self) -> None:
        names = ("weights", "classes", "size", "mean", "std")
        given = [name for name in names if getattr(self, name) is not None]
        if self.crop != "auto":
            given.append("crop")
        if given:
            raise ValueError(
                f"--{given[0]}: {Path(self.model).name} has its own weights, classes and preprocessing; leave it out"
            )

    def _placement_of_package(self) -> tuple[torch.device, torch.dtype]:
        from ..packages import package_info

        path = Path(self.model)
        spec = package_info(path).images
        dtype, device = str(spec.dtype).removeprefix("torch."), torch.device(self.device or spec.device)
        if self.dtype not in (dtype, "float32"):
            raise ValueError(f"--dtype: {path.name} was exported in {dtype}; export it again for another one")
        if device.type != spec.device.type:
            raise ValueError(f"--device: {path.name} was exported for {spec.device.type}; export it for {device.type}")
        return device, spec.dtype
