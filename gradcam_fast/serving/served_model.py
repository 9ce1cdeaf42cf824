"""One model of the service: how photos become its inputs, and how a batch of them is predicted and explained."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from ..layers import list_layers
from ..pipeline.batch_explainer import BatchExplainer
from ..pipeline.networks.packaged import PackagedNetwork
from ..pipeline.photo_reading import load_photo, read_photo
from ..pipeline.question import Question, QuestionError
from .queries import QueryError

if TYPE_CHECKING:
    from ..pipeline.network_source import NetworkSource
    from ..pipeline.results import LoadedPhoto, PhotoResult
    from .queries import PhotoQuery
    from .settings import ServiceSettings

__all__ = ["PreparedPhoto", "ServedModel", "Work"]

# How many classes a prediction names, if it is not said.
_PREDICTED = 5


class Work(NamedTuple):
    """What photos of one batch have in common.

    Attributes:
        model: the model, as it was when the photos were prepared.
        explained: whether they are explained.
        watched: whether they are explained for the metrics only, where ``when`` says so.
        question: method and layer; without the classes.
        classes: how many classes: explained, or of the prediction.
        targeted: whether the classes are given; else they are the most probable ones.
        input_size: (height, width) of the input.
    """

    model: ServedModel
    explained: bool
    watched: bool
    question: Question
    classes: int
    targeted: bool
    input_size: tuple[int, int]


@dataclass(frozen=True)
class PreparedPhoto:
    """A photo ready for a batch.

    Attributes:
        work: the kind of batch.
        photo: with the network's input.
        targets: the numbers of the classes to explain.
        since: when it was prepared, by `time.perf_counter`.
    """

    work: Work
    photo: LoadedPhoto
    targets: tuple[int, ...] = ()
    since: float = field(default_factory=time.perf_counter)


class ServedModel:
    """A network that was loaded, tried once, and is ready for batches.

    `prepare` may be called by many threads at a time, the others by one.

    Attributes:
        network, device, dtype: the network, on its device.
        layer: the layer that is explained if none is asked for.

    Raises:
        ValueError, FileNotFoundError, ImportError: as `NetworkSource.load`; or the network cannot be explained.
    """

    def __init__(self, source: NetworkSource, settings: ServiceSettings) -> None:
        self.settings = settings
        self.device, self.dtype = source.placement()
        network = source.load()
        self.network = replace(network, model=network.model.to(self.device, self.dtype))
        self._explainers: dict[tuple[str | None, str, bool], BatchExplainer] = {}
        self._lock = threading.Lock()
        self._layers: list[dict[str, Any]] | None = None
        self.layer = self._try_once()
        if settings.when is not None:
            self._explainer(Question(), watched=True)  # refuses a package, which explains every photo

    def prepare(self, query: PhotoQuery, *, watched: bool = False) -> PreparedPhoto:
        """Decode a photo, make it the network's input, and resolve what is asked.

        Args:
            watched: whether it is explained for the metrics only, and only where ``when`` says so.

        Raises:
            QueryError: something is asked that this model or service does not do.
            PhotoError: the photo cannot be read.
        """
        question, targets, count = self._resolve(query)
        photo = read_photo(query.data, self.settings.max_pixels, name=query.name)
        loaded = load_photo(photo, self.network.preprocess, path=Path(query.name), name="", longest=query.longest)
        assert loaded.input is not None
        height, width = loaded.input.shape[2:]
        work = Work(self, query.verb == "explain", watched, question, count, bool(targets), (height, width))
        return PreparedPhoto(work, loaded, targets)

    def run(self, work: Work, photos: Sequence[PreparedPhoto]) -> list[PhotoResult]:
        """The results of a batch."""
        images = torch.cat([prepared.photo.input for prepared in photos if prepared.photo.input is not None])
        explainer = self._explainer(work.question, watched=work.watched)
        if not work.explained:
            return explainer.predict(images, work.classes)()
        if work.targeted:
            return explainer.explain(images, target=torch.tensor([prepared.targets for prepared in photos]))()
        return explainer.explain(images, topk=work.classes)()

    def describe(self) -> dict[str, Any]:
        """What clients may want to know of the model."""
        package = self.network.package if isinstance(self.network, PackagedNetwork) else None
        return {
            "title": self.network.title,
            "input": list(self.network.preprocess.size or ()),
            "classes": len(self.network.class_names),
            "layer": self.layer,
            "methods": [package.info.record.method] if package else list(self.settings.methods),
            "explains": self._explained_classes(),
            "probabilities": self.network.probabilities,
            "notes": list(self.network.notes),
        }

    def _explained_classes(self) -> Literal["any", "fixed", "target"]:
        """Which classes can be explained: any; those for which a package was made; or one that must be given."""
        if not isinstance(self.network, PackagedNetwork) or self.network.package is None:
            return "any"
        return "target" if self.network.package.info.record.target.kind == "input" else "fixed"

    def layers(self) -> list[dict[str, Any]]:
        """The layers that can be explained, one for each stage; a package has one."""
        if self._layers is None:
            self._layers = self._list_layers()
        return self._layers

    def _list_layers(self) -> list[dict[str, Any]]:
        if isinstance(self.network, PackagedNetwork):
            return [{"name": self.layer, "kind": "", "grid": [], "default": True}]
        found = list_layers(self.network.model, self._noise())
        layers = [
            {"name": layer.name, "kind": layer.kind, "grid": list(layer.grid), "default": layer.name == self.layer}
            for layer in found
        ]
        if not any(layer["default"] for layer in layers):
            layers.append({"name": self.layer, "kind": "", "grid": [], "default": True})
        return layers

    def _resolve(self, query: PhotoQuery) -> tuple[Question, tuple[int, ...], int]:
        """Method and layer; the classes, if they are given; and how many."""
        most = min(self.settings.max_classes, len(self.network.class_names))
        if query.verb == "predict":
            if query.targets or query.layer is not None:
                raise QueryError(f"{query.name}: a prediction takes no target and no layer; ask for :explain")
            return Question(), (), min(query.topk or _PREDICTED, len(self.network.class_names))
        if query.method not in self.settings.methods:
            raise QueryError(
                f"method: {query.method!r} is not served here; choose one of {', '.join(self.settings.methods)}"
            )
        if max(len(query.targets), query.topk or 0) > most:
            raise QueryError(f"at most {most} classes of a photo are explained at once; ask for fewer")
        try:
            asked = [self.network.ask(target=target, **_chosen(query)) for target in query.targets]
            question = asked[0] if asked else self.network.ask(topk=query.topk, **_chosen(query))
        except QuestionError as error:
            raise QueryError(str(error)) from None
        targets = tuple(each.target for each in asked if each.target is not None)
        if not asked and question.target is not None:
            targets = (question.target,)
        plain = replace(question, target=None, topk=None)
        try:
            self._explainer(plain, watched=False)
        except (TypeError, ValueError) as error:
            raise QueryError(str(error)) from None
        return plain, targets, len(targets) or question.topk or 1

    def _explainer(self, question: Question, *, watched: bool) -> BatchExplainer:
        """The explainer of a method and layer; each is made once."""
        key = question.layer, question.method, watched
        with self._lock:
            if key not in self._explainers:
                when = self.settings.when if watched else None
                self._explainers[key] = BatchExplainer(self.network, question, self.device, self.dtype, when=when)
            return self._explainers[key]

    def _noise(self) -> torch.Tensor:
        size = self.network.preprocess.size or (224, 224)
        image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
        return image.to(self.device, self.dtype)

    def _try_once(self) -> str:
        """Explain an image of noise, which finds the layer, and return its name."""
        try:
            question = self.network.ask()
        except QuestionError:  # a package to which the class must be given
            question = self.network.ask(target=0)
        explainer = self._explainer(replace(question, target=None, topk=None), watched=False)
        (result,) = explainer.explain(self._noise().cpu().float(), target=question.target, topk=question.topk)()
        return result.layer


def _chosen(query: PhotoQuery) -> dict[str, Any]:
    return {"layer": query.layer, "method": query.method}
