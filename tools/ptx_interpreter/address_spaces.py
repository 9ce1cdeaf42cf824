"""Where a launch's parameters and what its kernel declares lie in memory, and what its special registers say."""

import numpy as np

from .faults import Unsupported
from .memory import Region

# Each space begins behind this and its alignment, so that none of its addresses is zero, or better aligned than it was
# asked to be.
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
        **{name: each.astype(np.uint32) for name, each in own.items()},
    }


def lay_out(kernel, arguments, blocks, lanes, shared_bytes):
    """The regions of the spaces that have names in them, and the names' addresses."""
    addresses, params = {}, b""
    for (name, (align, size)), given in zip(kernel.params.items(), arguments, strict=True):
        given = given if isinstance(given, bytes) else int(given).to_bytes(size, "little")
        if len(given) != size:
            raise Unsupported(f"{name} is of {size} bytes, and {len(given)} were given")
        params += bytes(-len(params) % align)
        addresses[name] = RESERVED + len(params)
        params += given
    param = Region("the parameters", RESERVED, RESERVED + len(params), writable=False)
    param.bytes[RESERVED : param.high] = np.frombuffer(params, np.uint8)

    def areas(name, arrays, several, more):
        low = end = RESERVED + max((each.align for each in arrays.values()), default=16)
        # What has no size of its own comes last, and all such are the same bytes.
        for each, array in sorted(arrays.items(), key=lambda item: item[1].size == 0):
            end += -end % array.align
            addresses[each] = end
            end += array.size
        several = several if end + more > low else 1
        return Region(name, low, end + more, several=several, stride=-(-(end + more) // 128) * 128)

    regions = {
        "param": param,
        "shared": areas("the block's shared memory", kernel.shared, blocks, shared_bytes),
        "local": areas("the thread's own memory", kernel.local, lanes, 0),
    }
    return regions, {name: np.uint64(address) for name, address in addresses.items()}
