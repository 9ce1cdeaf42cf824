"""Models scripted and traced by torch.jit, without its deprecation warnings."""

import warnings

import torch


def scripted(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        return torch.jit.script(model)


def traced(model, *inputs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(model.eval(), inputs)
