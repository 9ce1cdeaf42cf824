"""Other libraries' names on gradcam_fast: code written for them runs after one import is changed.

``gradcam_fast.compat.pytorch_grad_cam`` mirrors pytorch-grad-cam; ``install()`` gives it that library's own name, for
code that cannot be edited.
"""

from .names import install

__all__ = ["install"]
