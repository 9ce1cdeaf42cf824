"""PyTorch's operators on the CUDA devices of runtime.cpp: each by its own operator of the CPU, in the same memory.

Done at once; or, while the current stream is captured, when the graph is launched. What would wait for a device waits.
Random numbers are the CPU's. Knows nothing of what is tested.
"""

import ctypes
import itertools

import torch
from torch.utils._pytree import tree_flatten, tree_map

# What touches no number on the device stays PyTorch's own, as everything does that returns a view.
KEPT = {"empty", "empty_strided", "resize_", "set_", "record_stream", "_local_scalar_dense", "is_pinned", "_pin_memory"}
# Not of the CUDA devices alone, but made for them of operators that have no like on the CPU.
WHOLE = {"convolution"}
# How many results there are is known when the device has counted them.
COUNTED = {
    "nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive",
    "bincount", "equal", "repeat_interleave",
}  # fmt: skip

_runtime = ctypes.CDLL(None)
_numbers = itertools.count()
_works = {}


def install():
    """Call once, before anything is done on a CUDA device."""
    library = torch.library.Library("aten", "IMPL")
    # Of attentions the one that is composed of operators of both.
    ours = {"copy_": _copy, "_fused_sdp_choice": lambda *_, **__: 0}
    for name, work in ours.items():
        library.impl(name, work, "CUDA")
    names = {name.removeprefix("aten::") for name in torch._C._dispatch_get_registrations_for_dispatch_key("CUDA")}
    for name in sorted((names | WHOLE) - ours.keys()):
        packet, _, overload = name.partition(".")
        operator = getattr(getattr(torch.ops.aten, packet, None), overload or "default", None)
        if operator is not None and packet not in KEPT and not _returns_a_view(operator):
            library.impl(name, _on_the_host(operator), "CUDA")
    torch.backends.cudnn.enabled = False
    torch.cuda._sleep = lambda cycles: None
    return library


def _returns_a_view(operator):
    return any(each.alias_info is not None and not each.alias_info.is_write for each in operator._schema.returns)


def _on_the_host(operator):
    packet = operator._schema.name.removeprefix("aten::")
    returns, parameters = operator._schema.returns, operator._schema.arguments
    outputs = {each.name for each in parameters if each.alias_info is not None and each.kwarg_only}

    def run(*arguments, **named):
        if packet in COUNTED or (
            packet in ("index", "_index_put_impl_") and any(_is_mask(each) for each in arguments[1])
        ):
            torch.cuda.current_stream().synchronize()
        given = dict(zip([each.name for each in parameters], arguments, strict=False)) | named
        # A number may stand for a tensor.
        for each in parameters:
            if isinstance(each.type, torch.TensorType) and isinstance(given.get(each.name), bool | int | float):
                given[each.name] = torch.tensor(given[each.name])
        inputs = [each for each in tree_flatten(given)[0] if _is_cuda(each)]
        device = inputs[0].device if inputs else torch.device("cuda", torch.cuda.current_device())
        # What is named to be written to may have to be resized.
        host = {name: _empty(each) if name in outputs else tree_map(_to_host, each) for name, each in given.items()}
        capturing = torch.cuda.is_current_stream_capturing()
        # Of what is captured only the shapes are known yet.
        found = operator(**tree_map(_to_meta, host)) if capturing else _call(operator, host)
        results, filled = [], []
        for index, (one, declared) in enumerate(zip(_listed(found, returns), returns, strict=True)):
            if declared.alias_info is None:
                result = tree_map(lambda each: _like(each, device), one)
            else:
                result = given[_written(parameters, declared).name]
                if isinstance(result, torch.Tensor) and result.shape != one.shape:
                    result.resize_(one.shape)
            results.append(result)
            filled.append((index, tree_map(_to_host, result)))

        def fill(found):
            for index, target in filled:
                _store(target, _listed(found, returns)[index])

        if capturing:
            _enqueue(lambda: fill(_call(operator, host)))
        else:
            fill(found)
        return results[0] if len(returns) == 1 else tuple(results)

    return run


def _copy(to, source, non_blocking=False):
    """What is copied from or to the host waits, unless it is said not to."""
    if not non_blocking and not (to.is_cuda and source.is_cuda):
        torch.cuda.current_stream().synchronize()
    target, numbers = _to_host(to), _to_host(source)
    if torch.cuda.is_current_stream_capturing():
        if not all(each.is_cuda or each.is_pinned() for each in (to, source)):
            raise RuntimeError("CUDA error: what is copied to or from the host in a capture has to be pinned there")
        _enqueue(lambda: target.copy_(numbers))
    else:
        target.copy_(numbers)
    return to


def _enqueue(work):
    number = next(_numbers)
    _works[number] = work
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    if _runtime.fake_cuda_do(stream, _do, ctypes.c_int64(number)) != 0:
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


@ctypes.CFUNCTYPE(None, ctypes.c_int64)
def _do(number):
    # Tensors made under inference mode are changed under it only; others may be.
    with torch.inference_mode():
        _works[number]()


def _call(operator, given):
    with torch._C._AutoDispatchBelowAutograd():
        try:
            return operator(**given)
        except RuntimeError as error:
            if not any(reason in str(error) for reason in ("not implemented for", "expected scalar type")):
                raise
            # The CPU has no such operator in half precision, or none that takes statistics in single.
            (half,) = {each.dtype for each in tree_flatten(given)[0] if _is_half(each)}
            found = operator(**tree_map(lambda each: each.float() if _is_half(each) else each, given))
            return tree_map(lambda each: each.to(half) if isinstance(each, torch.Tensor) else each, found)


def _is_cuda(each):
    return isinstance(each, torch.Tensor) and each.is_cuda


def _is_half(each):
    return isinstance(each, torch.Tensor) and each.dtype in (torch.float16, torch.bfloat16)


def _is_mask(each):
    return isinstance(each, torch.Tensor) and each.dtype in (torch.bool, torch.uint8)


def _to_host(each):
    """A tensor of the CPU in the same memory, without keeping that from being freed."""
    if isinstance(each, torch.device):
        return torch.device("cpu")
    if isinstance(each, torch.Generator):
        return None
    if not _is_cuda(each):
        return each
    storage = each.untyped_storage()
    memory = torch._C._construct_storage_from_data_pointer(storage.data_ptr(), torch.device("cpu"), storage.nbytes())
    host = torch.empty(0, dtype=each.dtype)
    return host.set_(memory, each.storage_offset(), each.shape, each.stride())


def _to_meta(each):
    return torch.device("meta") if isinstance(each, torch.device) else _like(each, "meta")


def _empty(each):
    return torch.empty(0, dtype=each.dtype)


def _like(each, device):
    if not isinstance(each, torch.Tensor):
        return each
    return torch.empty_strided(each.shape, each.stride(), dtype=each.dtype, device=device)


def _store(target, found):
    for one, other in zip(tree_flatten(target)[0], tree_flatten(found)[0], strict=True):
        # Statistics that are not needed the CPU leaves out.
        if isinstance(one, torch.Tensor) and other.numel() != 0 and one.data_ptr() != other.data_ptr():
            one.copy_(other)


def _listed(found, returns):
    return [found] if len(returns) == 1 else list(found)


def _written(parameters, declared):
    """The parameter that the operator writes to and returns."""
    (found,) = (
        each
        for each in parameters
        if each.alias_info is not None and each.alias_info.before_set == declared.alias_info.before_set
    )
    return found
