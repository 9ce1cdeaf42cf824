"""How many bytes of tensors live at once in a piece of work."""

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _LiveTensors(TorchDispatchMode):
    """Follows the memory of all tensors that operations make."""

    def __init__(self):
        super().__init__()
        self.known, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if _is_tensor(tensor)}
        for tensor in filter(_is_tensor, tree_leaves(result)):
            storage = tensor.untyped_storage()
            if storage._cdata not in inputs:  # a view, or what was written in place
                self.known[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.known = {key: known for key, known in self.known.items() if not known[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.known.values()))
        return result


def _is_tensor(value):
    return isinstance(value, torch.Tensor)


def peak_bytes(work):
    """The most bytes of tensors, made by ``work()``, that live at the same time."""
    with _LiveTensors() as live:
        work()
    return live.peak
