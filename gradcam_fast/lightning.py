"""A callback of Lightning that logs where a model looks while it learns; needs the extra ``lightning``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .explainer import Explainer
from .preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from .visual.overlay import overlay

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise ImportError("the callback needs lightning, which is not installed; run pip install lightning") from error

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from .types import Target

__all__ = ["HeatmapLogger"]

Write = Callable[[Any, str, torch.Tensor, int], None]
"""Logs pictures: the logger, the name, uint8 RGB (N,3,H,W) on the CPU, the step."""


class HeatmapLogger(Callback):
    """Logs the overlays of a fixed batch before training and every few epochs, to each logger of the trainer.

    The model predicts in eval mode and under the trainer's precision, whatever mode it trains in, and is afterwards as
    it was. With several processes the first one logs. TensorBoard's logger and those with ``log_image`` (Weights &
    Biases) get pictures; for any other they become PNG files in its ``log_dir``, and without a logger in the trainer's
    ``default_root_dir``.

    Args:
        images: the batch, (B,3,H,W) as the model takes it, normalised by ``mean`` and ``std``; or, if ``preprocess`` is
            given, photos in any form that :class:`gradcam_fast.Preprocess` takes.
        target, topk: as in :func:`gradcam_fast.explain`; by default the class that is predicted at the time.
        every_n_epochs: the pictures come after the epochs n, 2n ...
        name: of the pictures in the log.
        mean, std: of the images, on the [0,1] scale; ImageNet's by default.
        preprocess: what :meth:`gradcam_fast.Preprocess.of` takes; then its ``mean`` and ``std`` count.
        module: dotted name of the part of the LightningModule that takes the images; "" is the whole.
        write: logs the pictures in your own way: ``write(logger, name, pictures, step)``, pictures uint8 (N,3,H,W).
        choices: ``method=``, ``layer=`` and all others of :class:`gradcam_fast.Explainer`.

    Raises:
        ValueError: ``every_n_epochs`` is below 1.

    What the model, images or choices lack is told before the first epoch.

    Example:
        >>> import torch
        >>> from gradcam_fast.lightning import HeatmapLogger
        >>> callback = HeatmapLogger(torch.rand(4, 3, 32, 32), every_n_epochs=5, mean=0, std=1)
        >>> # lightning.Trainer(callbacks=[callback]).fit(module, loader)
    """

    def __init__(
        self,
        images: Any,
        *,
        target: Target = None,
        topk: int | None = None,
        every_n_epochs: int = 1,
        name: str = "heatmaps",
        mean: Any = IMAGENET_MEAN,
        std: Any = IMAGENET_STD,
        preprocess: Any = None,
        module: str = "",
        write: Write | None = None,
        **choices: Any,
    ) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs={every_n_epochs} is never reached; give at least 1")
        self._images, self._mean, self._std = images, mean, std
        if preprocess is not None:
            steps = Preprocess.of(preprocess)
            self._images, self._mean, self._std = steps(images).images, steps.mean, steps.std
        self._target, self._topk, self._choices = target, topk, choices
        self._every, self._name, self._module = every_n_epochs, name, module
        self._write = write

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log where the model looks before it has learnt anything."""
        self._log(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log where the model looks now."""
        if (trainer.current_epoch + 1) % self._every == 0:
            self._log(trainer, pl_module)

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        with _in_eval_mode(pl_module), trainer.precision_plugin.forward_context():
            pictures = self._pictures(pl_module.get_submodule(self._module))
        loggers: list[Any] = [*trainer.loggers] or [None]
        for logger in loggers:
            if self._write is not None:
                self._write(logger, self._name, pictures, trainer.global_step)
            elif not _write_to(logger, self._name, pictures, trainer.global_step):
                folder = getattr(logger, "log_dir", None) or trainer.default_root_dir
                _write_files(Path(folder, self._name), pictures, trainer.global_step)

    def _pictures(self, model: nn.Module) -> torch.Tensor:
        """The overlays of all images and classes, uint8 (N,3,H,W) on the CPU."""
        weight = next(model.parameters())
        explanation = Explainer(model, **self._choices)(self._images.to(weight), self._target, self._topk)
        heatmap, signed = explanation.heatmap.cpu(), explanation.signed
        pictures = overlay(self._images.cpu(), heatmap, mean=self._mean, std=self._std, signed=signed)
        return pictures.flatten(0, -4)


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards each part in the mode it had, which may differ between parts."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _write_to(logger: Any, name: str, pictures: torch.Tensor, step: int) -> bool:
    """Log the pictures in the way of a known kind of logger; False for any other."""
    if hasattr(logger, "log_image"):
        logger.log_image(name, [picture.permute(1, 2, 0).numpy() for picture in pictures], step)
    elif hasattr(getattr(logger, "experiment", None), "add_images"):
        logger.experiment.add_images(name, pictures, step)
    else:
        return False
    return True


def _write_files(folder: Path, pictures: torch.Tensor, step: int) -> None:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"step{step}-{number}.png")
