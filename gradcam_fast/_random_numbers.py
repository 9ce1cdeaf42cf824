"""Random numbers of a trial run or of an untrained network, which take none from PyTorch's generators."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack, _pop_mode, _push_mode

from ._model.undo import undo_at_end

__all__ = ["OwnRandomNumbers"]

_SEED = 0


class OwnRandomNumbers(TorchDispatchMode):
    """Inside, this thread draws from generators of its own, the same numbers each time.

    PyTorch's generators belong to the whole process: if this thread drew from them and then put their state back, other
    threads would draw their numbers twice. A mode of dispatch belongs to one thread.

    A generator that the model passes itself is copied, so that it is not advanced either. Only fused attention and the
    recurrent networks of cuDNN take no generator: with dropout in training mode on a GPU, they draw from PyTorch's.
    """

    def __init__(self) -> None:
        super().__init__()
        self._generators: dict[torch.device, torch.Generator] = {}
        self._of_model: dict[int, tuple[torch.Generator, torch.Generator]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled inside, and else PyTorch imports its compiler

    def __enter__(self) -> OwnRandomNumbers:
        # TorchDispatchMode would also set flags of the whole process, which other threads could leave set.
        undo_at_end(self._leave)
        _push_mode(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    def _leave(self) -> None:
        while any(mode is self for mode in _get_current_dispatch_mode_stack()):
            _pop_mode()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        if func is torch.ops.aten.native_dropout.default:
            return self._dropout(*args, **kwargs)
        seeded, place = _seeded(func)
        if seeded is None:
            return func(*args, **kwargs)
        given = kwargs.pop("generator", None)
        if place is not None and place < len(args):
            args, given = args[:place], args[place]
        device = kwargs.get("device") or next((a.device for a in args if isinstance(a, torch.Tensor)), "cpu")
        return seeded(*args, **kwargs, generator=self._generator(torch.device(device), given))

    def _generator(self, device: torch.device, given: torch.Generator | None) -> torch.Generator:
        if given is not None:
            if id(given) not in self._of_model:
                self._of_model[id(given)] = given, given.clone_state()
            return self._of_model[id(given)][1]
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(_SEED)
        return self._generators[device]

    def _dropout(self, values: torch.Tensor, p: float, train: bool | None) -> tuple[torch.Tensor, torch.Tensor]:
        """``native_dropout``, which takes no generator."""
        if train is False:
            return values.clone(), torch.ones_like(values, dtype=torch.bool)
        kept = torch.rand(
            values.shape, dtype=torch.float32, device=values.device, generator=self._generator(values.device, None)
        )
        mask = kept >= p
        return values * mask * (1 / (1 - p) if p < 1 else 0.0), mask


@cache
def _seeded(func: Any) -> tuple[Any, int | None]:
    """The overload of a random operation that takes a generator, and its place in ``func``; None if there is none."""
    names = [argument.name for argument in func._schema.arguments]
    if "generator" in names:
        return func, names.index("generator")
    packet = func._overloadpacket
    for name in packet.overloads():
        overload = getattr(packet, name)
        others = [argument.name for argument in overload._schema.arguments if argument.name != "generator"]
        if others == names and len(others) < len(overload._schema.arguments):
            return overload, None
    return None, None
