"""PyTorch's operators for CUDA tensors, each by the CPU operator of the same name, in the same memory.

An operator runs at once or, while the current stream is captured, when the graph is launched. Operators that would wait
for the device do wait, so that a capture refuses them. Random numbers are those of the CPU.
"""

import ctypes
import itertools

import torch
from torch.utils._pytree import tree_flatten, tree_map

# Operators that read and write no numbers stay PyTorch's own, and so do operators that return a view.
NOT_REPLACED = {
    "empty",
    "empty_strided",
    "resize_",
    "set_",
    "record_stream",
    "_local_scalar_dense",
    "is_pinned",
    "_pin_memory",
}
# Not registered for CUDA, but composed of CUDA operators that the CPU does not have.
COMPOSED = {"convolution"}
# Operators that wait for the device, because the number of their results depends on the values.
SIZED_BY_VALUES = {
    "nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive",
    "bincount", "equal", "repeat_interleave",
}  # fmt: skip

_runtime = ctypes.CDLL(None)
_work_numbers = itertools.count()
_captured_work = {}


def install():
    """Replace the operators; keep what this returns. To be called before anything is done on a CUDA device."""
    library = torch.library.Library("aten", "IMPL")
    # Choice 0 is the attention composed of operators that CPU and CUDA both have.
    own = {"copy_": _copy, "_fused_sdp_choice": lambda *_, **__: 0}
    for name, function in own.items():
        library.impl(name, function, "CUDA")
    names = {name.removeprefix("aten::") for name in torch._C._dispatch_get_registrations_for_dispatch_key("CUDA")}
    for name in sorted((names | COMPOSED) - own.keys()):
        packet, _, overload = name.partition(".")
        operator = getattr(getattr(torch.ops.aten, packet, None), overload or "default", None)
        if operator is not None and packet not in NOT_REPLACED and not _returns_a_view(operator):
            library.impl(name, _on_the_host(operator), "CUDA")
    torch.backends.cudnn.enabled = False
    torch.cuda._sleep = lambda cycles: None
    return library


def _returns_a_view(operator):
    return any(value.alias_info is not None and not value.alias_info.is_write for value in operator._schema.returns)


def _on_the_host(operator):
    """The function that takes the place of a CUDA operator."""
    packet = operator._schema.name.removeprefix("aten::")
    returns, parameters = operator._schema.returns, operator._schema.arguments
    outputs = {parameter.name for parameter in parameters if parameter.alias_info is not None and parameter.kwarg_only}

    def run(*arguments, **named):
        if packet in SIZED_BY_VALUES or (
            packet in ("index", "_index_put_impl_") and any(_is_mask(index) for index in arguments[1])
        ):
            torch.cuda.current_stream().synchronize()
        values = dict(zip([parameter.name for parameter in parameters], arguments, strict=False)) | named
        # A Python number may be passed for a tensor.
        for parameter in parameters:
            if isinstance(parameter.type, torch.TensorType) and isinstance(
                values.get(parameter.name), bool | int | float
            ):
                values[parameter.name] = torch.tensor(values[parameter.name])
        inputs = [value for value in tree_flatten(values)[0] if _is_cuda(value)]
        device = inputs[0].device if inputs else torch.device("cuda", torch.cuda.current_device())
        # Output arguments may have to be resized, so the CPU operator gets empty ones.
        host = {name: _empty(value) if name in outputs else tree_map(_to_host, value) for name, value in values.items()}
        capturing = torch.cuda.is_current_stream_capturing()
        # In a capture nothing is computed yet, and only shapes are known.
        computed = operator(**tree_map(_to_meta, host)) if capturing else _call(operator, host)
        results, host_results = [], []
        for index, (value, declared) in enumerate(zip(_as_list(computed, returns), returns, strict=True)):
            if declared.alias_info is None:
                result = tree_map(lambda tensor: _like(tensor, device), value)
            else:
                result = values[_aliased_parameter(parameters, declared).name]
                if isinstance(result, torch.Tensor) and result.shape != value.shape:
                    result.resize_(value.shape)
            results.append(result)
            host_results.append((index, tree_map(_to_host, result)))

        def store_results(computed):
            for index, target in host_results:
                _store(target, _as_list(computed, returns)[index])

        if capturing:
            _enqueue(lambda: store_results(_call(operator, host)))
        else:
            store_results(computed)
        return results[0] if len(returns) == 1 else tuple(results)

    return run


def _copy(to, source, non_blocking=False):
    """copy_: waits for copies from or to the host, unless non_blocking."""
    if not non_blocking and not (to.is_cuda and source.is_cuda):
        torch.cuda.current_stream().synchronize()
    host_target, host_source = _to_host(to), _to_host(source)
    if torch.cuda.is_current_stream_capturing():
        if not all(tensor.is_cuda or tensor.is_pinned() for tensor in (to, source)):
            raise RuntimeError("CUDA error: a captured copy from or to the host needs pinned host memory")
        _enqueue(lambda: host_target.copy_(host_source))
    else:
        host_target.copy_(host_source)
    return to


def _enqueue(work):
    number = next(_work_numbers)
    _captured_work[number] = work
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    if _runtime.fake_cuda_enqueue(stream, _do_work, ctypes.c_int64(number)) != 0:
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


@ctypes.CFUNCTYPE(None, ctypes.c_int64)
def _do_work(number):
    # Inference tensors may be changed in inference mode only; others may be changed in it, too.
    with torch.inference_mode():
        _captured_work[number]()


def _call(operator, arguments):
    with torch._C._AutoDispatchBelowAutograd():
        try:
            return operator(**arguments)
        except RuntimeError as error:
            if not any(reason in str(error) for reason in ("not implemented for", "expected scalar type")):
                raise
            # The CPU operator does not take half precision, or not together with float32 statistics.
            (half,) = {value.dtype for value in tree_flatten(arguments)[0] if _is_half(value)}
            computed = operator(**tree_map(lambda value: value.float() if _is_half(value) else value, arguments))
            return tree_map(lambda value: value.to(half) if isinstance(value, torch.Tensor) else value, computed)


def _is_cuda(value):
    return isinstance(value, torch.Tensor) and value.is_cuda


def _is_half(value):
    return isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16)


def _is_mask(value):
    return isinstance(value, torch.Tensor) and value.dtype in (torch.bool, torch.uint8)


def _to_host(value):
    """For a CUDA tensor, a CPU tensor in the same memory, which does not keep the memory from being freed."""
    if isinstance(value, torch.device):
        return torch.device("cpu")
    if isinstance(value, torch.Generator):
        return None
    if not _is_cuda(value):
        return value
    storage = value.untyped_storage()
    memory = torch._C._construct_storage_from_data_pointer(storage.data_ptr(), torch.device("cpu"), storage.nbytes())
    host = torch.empty(0, dtype=value.dtype)
    return host.set_(memory, value.storage_offset(), value.shape, value.stride())


def _to_meta(value):
    return torch.device("meta") if isinstance(value, torch.device) else _like(value, "meta")


def _empty(tensor):
    return torch.empty(0, dtype=tensor.dtype)


def _like(value, device):
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)


def _store(target, computed):
    for to, source in zip(tree_flatten(target)[0], tree_flatten(computed)[0], strict=True):
        # The CPU leaves out statistics that are not needed.
        if isinstance(to, torch.Tensor) and source.numel() != 0 and to.data_ptr() != source.data_ptr():
            to.copy_(source)


def _as_list(computed, returns):
    return [computed] if len(returns) == 1 else list(computed)


def _aliased_parameter(parameters, declared):
    """The parameter that the operator writes to and returns."""
    (aliased,) = (
        parameter
        for parameter in parameters
        if parameter.alias_info is not None and parameter.alias_info.before_set == declared.alias_info.before_set
    )
    return aliased
