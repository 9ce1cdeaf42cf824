"""The memory layout of a launch: its parameters, the arrays its kernel declares, and its special registers."""

import numpy as np

from .faults import Unsupported
from .memory import Region

# Each space begins at this offset plus its alignment, so that no address is zero, or better aligned than declared.
RESERVED = 1024


def special_registers(lanes, threads, blocks, clusters):
    sizes = {"%ntid.x": threads, "%nctaid.x": blocks * clusters, "%cluster_nctarank": blocks}
    ones = [f"%{name}.{axis}" for name in ("ntid", "nctaid") for axis in "yz"]
    zeros = [f"%{name}.{axis}" for name in ("tid", "ctaid") for axis in "yz"]
    own = {
        "%tid.x": lanes % threads,
        "%ctaid.x": lanes // threads,
        "%cluster_ctarank": lanes // threads,
        "%laneid": lanes & 31,
    }
    return {
        **{name: np.uint32(value) for name, value in sizes.items()},
        **dict.fromkeys(ones, np.uint32(1)),
        **dict.fromkeys(zeros, np.uint32(0)),
        **{name: values.astype(np.uint32) for name, values in own.items()},
    }


def lay_out_spaces(kernel, arguments, blocks, lanes, shared_bytes):
    """(region by space, address by name) of the parameter, shared and local memory."""
    addresses, params = {}, b""
    for (name, (align, size)), argument in zip(kernel.params.items(), arguments, strict=True):
        data = argument if isinstance(argument, bytes) else int(argument).to_bytes(size, "little")
        if len(data) != size:
            raise Unsupported(f"{name} has {size} bytes, got {len(data)}")
        params += bytes(-len(params) % align)
        addresses[name] = RESERVED + len(params)
        params += data
    param = Region("the parameters", RESERVED, RESERVED + len(params), writable=False)
    param.bytes[RESERVED : param.high] = np.frombuffer(params, np.uint8)

    def region_of(name, arrays, copies, extra_bytes):
        low = end = RESERVED + max((array.align for array in arrays.values()), default=16)
        # Arrays sized at the launch come last, and share the same bytes.
        for array_name, array in sorted(arrays.items(), key=lambda item: item[1].size == 0):
            end += -end % array.align
            addresses[array_name] = end
            end += array.size
        copies = copies if end + extra_bytes > low else 1
        return Region(name, low, end + extra_bytes, copies=copies, stride=-(-(end + extra_bytes) // 128) * 128)

    regions = {
        "param": param,
        "shared": region_of("the block's shared memory", kernel.shared, blocks, shared_bytes),
        "local": region_of("the thread's own memory", kernel.local, lanes, 0),
    }
    return regions, {name: np.uint64(address) for name, address in addresses.items()}
