"""The first principal component of activations over their positions, of Eigen-CAM and KPCA-CAM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gradcam_fast.methods import first_component

from ..extras import import_extra

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["get_2d_projection", "get_2d_projection_kernel", "get_2d_projection_with_sign_correction"]


def get_2d_projection(activation_batch: NDArray[Any], direction: NDArray[Any] | None = None) -> NDArray[np.float32]:
    """Project activations (B,C,h,w) on the first principal component of their positions: (B,h,w).

    The channels are centred; NaN counts as 0. The sign is that of a positive correlation with ``direction`` (B,h,w), or
    with the mean over the channels, so that a map does not depend on the sign that an eigenvector happens to have. More
    in :func:`gradcam_fast.methods.first_component`.

    Example:
        >>> import numpy as np
        >>> get_2d_projection(np.array([[[[0.0, 2.0]], [[0.0, 4.0]]]])).round(3)
        array([[[-2.236,  2.236]]], dtype=float32)
    """
    along = None if direction is None else torch.from_numpy(_without_nan(direction))
    return first_component(torch.from_numpy(_without_nan(activation_batch)), along).numpy().astype(np.float32)


def get_2d_projection_with_sign_correction(activation_batch: NDArray[Any]) -> NDArray[np.float32]:
    """The same with the sign that makes the largest magnitude positive (Chung and Ying, Appl. Sci. 2025, eq. 13)."""
    return np.stack(
        [
            -projection if -projection.min() > projection.max() else projection
            for projection in get_2d_projection(activation_batch)
        ]
    )


def get_2d_projection_kernel(
    activation_batch: NDArray[Any], kernel: str = "sigmoid", gamma: float | None = None
) -> NDArray[np.float32]:
    """The same by kernel principal component analysis (scikit-learn's ``KernelPCA``)."""
    kernel_pca = import_extra("sklearn.decomposition", "KernelPCA")

    projections = []
    for activations in _without_nan(activation_batch):
        positions = activations.reshape(len(activations), -1).T
        centred = positions - positions.mean(axis=0)
        projection = kernel_pca(n_components=1, kernel=kernel, gamma=gamma).fit_transform(centred)[:, 0]
        sign = -1 if (projection * centred.mean(axis=1)).sum() < 0 else 1
        projections.append(sign * projection.reshape(activations.shape[1:]))
    return np.asarray(projections, dtype=np.float32)


def _without_nan(maps: NDArray[Any]) -> NDArray[Any]:
    return np.nan_to_num(maps, nan=0.0, posinf=np.inf, neginf=-np.inf)
