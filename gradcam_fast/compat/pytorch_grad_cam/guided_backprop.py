"""Guided backpropagation (Springenberg et al., ICLR Workshops 2015)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["GuidedBackpropReLU", "GuidedBackpropReLUModel", "GuidedBackpropReLUasModule"]


class GuidedBackpropReLU(torch.autograd.Function):
    """A ReLU that lets only the positive part of a gradient pass, where its input is positive."""

    @staticmethod
    def forward(ctx: Any, input_img: Tensor) -> Tensor:
        ctx.save_for_backward(input_img > 0)
        return input_img.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (is_positive,) = ctx.saved_tensors
        return grad_output.clamp(min=0) * is_positive


class GuidedBackpropReLUasModule(nn.Module):
    """:class:`GuidedBackpropReLU` as a module, to stand in a model for ``nn.ReLU``."""

    def forward(self, input_img: Tensor) -> Any:
        return GuidedBackpropReLU.apply(input_img)


class GuidedBackpropReLUModel:
    """The gradient of a logit with respect to an image, of which every ``nn.ReLU`` lets only what is positive pass.

    The model's modules stay in their places. ReLUs that are functions are not guided.

    Args:
        model: is put into eval mode.
        device: where the model is moved; None = where it is.
    """

    def __init__(self, model: nn.Module, device: Any = None, *, use_cuda: bool = False) -> None:
        if use_cuda:
            device = "cuda"
        self.model = model.eval() if device is None else model.eval().to(device)
        self.device = next(model.parameters()).device

    def forward(self, input_img: Tensor) -> Any:
        """The model's output."""
        return self.model(input_img)

    def __call__(self, input_img: Tensor, target_category: int | None = None) -> NDArray[np.float32]:
        """The gradient (H,W,C) for the first image of the batch; ``target_category=None`` takes its highest logit."""
        images = input_img.detach().to(self.device).requires_grad_()
        relus = [module for module in self.model.modules() if isinstance(module, nn.ReLU)]
        hooks = [relu.register_forward_hook(_guide) for relu in relus]
        try:
            with torch.enable_grad():
                logits = self.forward(images)[0]
        finally:
            for hook in hooks:
                hook.remove()
        category = int(logits.argmax()) if target_category is None else target_category
        (gradient,) = torch.autograd.grad(logits[category], images)
        return gradient[0].permute(1, 2, 0).cpu().numpy()


def _guide(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    # A copy, because what follows may work in place.
    guided = output.clone()
    if guided.requires_grad:
        guided.register_hook(lambda gradient: gradient.clamp(min=0))
    return guided
