"""The bytes a kernel can access: buffers in global memory, shared memory, local memory, parameters.

Whether an access is allowed at its time is decided by the region's tracker (races.py).
"""

import numpy as np

from .registers import NUMPY_DTYPES

# Above these bits a cluster-wide address holds the block's rank plus one; zero stands for the thread's own block.
RANK_BITS = 24


class Region:
    """Bytes [low, high) from address `origin` on; or `copies` such areas at one address, stored `stride` apart."""

    def __init__(self, name, low, high, *, copies=1, stride=0, writable=True, tracker=None):
        self.name, self.low, self.high, self.stride = name, low, high, stride
        self.writable, self.tracker = writable, tracker
        self.origin = 0
        self.bytes = np.zeros(-(-max(copies * stride, high) // 16) * 16 + 16, np.uint8)
        self._views = {}

    def __str__(self):
        return self.name

    def address(self, offset):
        return self.origin + (offset % self.stride if self.stride else offset)

    def view(self, size):
        if size not in self._views:
            self._views[size] = self.bytes.view(NUMPY_DTYPES[f"u{8 * size}"])
        return self._views[size]


class GlobalMemory:
    """Buffers at separate addresses, so far apart that no access beyond one reaches another."""

    PAGE = 1 << 20

    def __init__(self):
        self.buffers = []
        self.next = 0x7B << 40

    def add(self, data, *, name=None, after=0):
        """Add a read-only copy of `data`, `after` bytes behind an aligned address; returns its address."""
        return self._place(np.frombuffer(data, np.uint8), name or f"buffer {len(self.buffers)}", after, writable=False)

    def make(self, size, *, name=None, after=0):
        """Add `size` bytes that the kernel writes; returns their address."""
        return self._place(np.zeros(size, np.uint8), name or f"buffer {len(self.buffers)}", after, writable=True)

    def _place(self, data, name, after, writable):
        region = Region(name, after, after + data.size, writable=writable)
        region.bytes[after : after + data.size] = data
        region.origin = self.next
        self.next += (data.size // self.PAGE + 2) * self.PAGE
        self.buffers.append(region)
        return region.origin + after

    def contents(self, address, dtype):
        """(values, which of them were written) of the buffer at `address`."""
        region = next(buffer for buffer in self.buffers if buffer.origin + buffer.low == address)
        itemsize = np.dtype(dtype).itemsize
        filled = np.repeat(region.tracker.filled, region.tracker.grain)[region.low : region.high]
        data = region.bytes[region.low : region.high].view(dtype)
        return data, filled.reshape(-1, itemsize).all(1)
