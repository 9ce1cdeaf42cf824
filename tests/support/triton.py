"""A stand-in for `triton_python_backend_utils`, which exists only inside Triton's Python backend.

It has what a model needs to read its requests and to answer them, with the checks that Triton makes of the answers.
"""

import sys
from types import ModuleType

import numpy


class Tensor:
    """A named array, as Triton hands it on: not a tensor of torch, and contiguous."""

    def __init__(self, name, array):
        assert isinstance(array, numpy.ndarray), f"{name} is a {type(array).__name__}, but Triton takes arrays of numpy"
        self._name, self._array = name, array

    def name(self):
        return self._name

    def as_numpy(self):
        return self._array


class InferenceRequest:
    def __init__(self, *inputs):
        self._inputs = {tensor.name(): tensor for tensor in inputs}

    def inputs(self):
        return list(self._inputs.values())


class TritonError:
    def __init__(self, message):
        self._message = message

    def message(self):
        return self._message


class InferenceResponse:
    def __init__(self, output_tensors=(), error=None):
        self._outputs, self._error = list(output_tensors), error

    def output_tensors(self):
        return self._outputs

    def has_error(self):
        return self._error is not None

    def error(self):
        return self._error


def get_input_tensor_by_name(request, name):
    """The input of this name; None if the request has none, as in Triton."""
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


def photos(*files):
    """A request with photos, as TYPE_STRING of the shape (B, 1)."""
    array = numpy.empty((len(files), 1), object)
    array[:, 0] = files
    return InferenceRequest(Tensor("PHOTO", array))


def install(monkeypatch):
    """Let a model import the stand-in, as it would import the module inside Triton."""
    module = ModuleType("triton_python_backend_utils")
    for stand_in in (Tensor, InferenceRequest, InferenceResponse, TritonError, get_input_tensor_by_name):
        setattr(module, stand_in.__name__, stand_in)
    monkeypatch.setitem(sys.modules, module.__name__, module)
