"""Exports an explanation into one file, and loads it where neither the model's code nor its weights are."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._compiled.archive import read_info
from ._compiled.loading import PackageRunner
from ._compiled.package_info import PackageInfo
from .compiled import CompiledExplainer

if TYPE_CHECKING:
    import torch

    from .explainer import Explainer
    from .preprocess import Preprocess
    from .types import Images, Target

__all__ = ["PackageInfo", "export", "load", "package_info"]


def export(
    explainer: Explainer,
    images: Images,
    path: str | os.PathLike[str],
    *,
    target: Target = None,
    topk: int | None = None,
    batch: int | tuple[int, int] = (1, 64),
    self_contained: bool = False,
    names: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | Preprocess | None = None,
    probabilities: str | None = "auto",
    title: str | None = None,
) -> Path:
    """Write an explanation, with the model's weights, into one file that runs without the model's code: a package.

    The model's forward, its backward and the heatmaps become native code for this kind of processor or device.
    ``gradcam_fast.load`` runs the package in Python, ``AOTIModelPackageLoader`` in C++. It needs the same release of
    torch, and the compiled operator (:func:`gradcam_fast.library_path`) unless it is self-contained.

    Args:
        explainer: the model and the choices of how to explain it. ``when`` and ``cuda_graph`` are not taken over.
        images: an example of what the model takes, of any batch size; its sides, dtype and device are those of the
            package.
        path: file to write, ``.pt2``; it appears when it is complete and was tried, and replaces one of that name.
        target: None for the highest logit; classes, the same for every image; a callable; or "input": the classes come
            in with every call, (B,), or (B,K) with ``topk=K``.
        topk: explain the K highest logits.
        batch: smallest and largest number of images, or the only one. One number gives the fastest code.
        self_contained: True computes the heatmaps with PyTorch's own operators, so that no other library is needed.
        names: the name of each class, to be read from the package.
        preprocessing: how images are prepared, to be read from the package: a :class:`gradcam_fast.Preprocess`, or the
            arguments of one as a dict. The command line needs it.
        probabilities: what the outputs are, as for :class:`gradcam_fast.Explainer`, to be read from the package.
        title: name of the network, to be read from the package; None takes the class of the model.

    Returns:
        The path.

    Raises:
        TypeError, ValueError: an argument that cannot work; before anything is compiled.
        gradcam_fast.exceptions.CannotCompile: the explanation cannot be traced or compiled, as for
            :meth:`Explainer.compile`.
        OSError: the folder does not exist or cannot be written to.

    Example:
        >>> import tempfile, torch, gradcam_fast
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        ...     torch.nn.Linear(8, 5)).eval()
        >>> images = torch.rand(2, 3, 16, 16)
        >>> folder = tempfile.mkdtemp()
        >>> path = gradcam_fast.export(gradcam_fast.Explainer(model), images, f"{folder}/model.pt2")  # doctest: +SKIP
        >>> gradcam_fast.load(path)(images).heatmap.shape  # doctest: +SKIP
        torch.Size([2, 16, 16])
    """
    from ._compiled.exporting import export_explanation

    return export_explanation(
        explainer,
        images,
        Path(path),
        target=target,
        topk=topk,
        batch=batch,
        self_contained=self_contained,
        names=names,
        preprocessing=preprocessing,
        probabilities=probabilities,
        title=title,
    )


def load(
    path: str | os.PathLike[str], *, device: str | torch.device | None = None, layer_maps: bool = False
) -> CompiledExplainer:
    """Load a package that :func:`export` wrote. Neither the model's code nor its weights are needed.

    A package is native code that runs in this process, as a shared library does: load only files that you trust.

    Args:
        path: the file.
        device: of packages for CUDA, the device to run on, such as "cuda:1"; None for the current one.
        layer_maps: True gives heatmaps at the resolution of the layer, which every package of one layer of images
            holds as well.

    Returns:
        CompiledExplainer: call it with images, and get an :class:`gradcam_fast.Explanation`. Images of another shape,
        dtype or device than the package takes are refused, as are other classes than it was made for.

    Raises:
        FileNotFoundError: there is no such file.
        gradcam_fast.exceptions.UnreadablePackage: it is damaged, was not made by :func:`export`, or by a newer
            gradcam_fast.
        gradcam_fast.exceptions.IncompatiblePackage: it was made with another release of torch, or for a processor or
            device that this machine does not have.
        gradcam_fast.exceptions.LibraryMissing: it calls the compiled operator, which was not built.
    """
    return CompiledExplainer(PackageRunner(path, device=device, layer_maps=layer_maps))


def package_info(path: str | os.PathLike[str]) -> PackageInfo:
    """What a package says of itself: its network, layer, classes, preprocessing and inputs. None of its code is run.

    Raises:
        FileNotFoundError, gradcam_fast.exceptions.UnreadablePackage: as :func:`load`.
    """
    return read_info(path)
