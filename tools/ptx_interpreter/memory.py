"""The bytes a kernel can reach: buffers in global memory, blocks' shared memory, threads' own, parameters.

Knows where each begins and ends and of what it keeps track; who may touch what when is races.py's affair.
"""

import numpy as np

from .registers import DTYPES

# Cluster-wide addresses carry their block's rank and one more above these bits; without it they are one's own.
RANK_BITS = 24


class Region:
    """Bytes [low, high) from `origin` on; or of each of `several` areas, `stride` apart, that all begin at `origin`."""

    def __init__(self, name, low, high, *, several=1, stride=0, writable=True, tracker=None):
        self.name, self.low, self.high, self.stride = name, low, high, stride
        self.writable, self.tracker = writable, tracker
        self.origin = 0
        self.bytes = np.zeros(-(-max(several * stride, high) // 16) * 16 + 16, np.uint8)
        self._views = {}

    def __str__(self):
        return self.name

    def address(self, offset):
        return self.origin + (offset % self.stride if self.stride else offset)

    def view(self, size):
        if size not in self._views:
            self._views[size] = self.bytes.view(DTYPES[f"u{8 * size}"])
        return self._views[size]


class GlobalMemory:
    """Buffers at addresses of their own, far enough apart that one's end is never another's beginning."""

    PAGE = 1 << 20

    def __init__(self):
        self.buffers = []
        self.next = 0x7B << 40

    def add(self, data, *, name=None, after=0):
        """The address of a copy of `data`, which can only be read, `after` bytes behind an aligned address."""
        return self._place(np.frombuffer(data, np.uint8), name or f"buffer {len(self.buffers)}", after, writable=False)

    def make(self, size, *, name=None, after=0):
        """The address of `size` bytes to be written."""
        return self._place(np.zeros(size, np.uint8), name or f"buffer {len(self.buffers)}", after, writable=True)

    def _place(self, data, name, after, writable):
        region = Region(name, after, after + data.size, writable=writable)
        region.bytes[after : after + data.size] = data
        region.origin = self.next
        self.next += (data.size // self.PAGE + 2) * self.PAGE
        self.buffers.append(region)
        return region.origin + after

    def contents(self, address, dtype):
        """What a kernel wrote to the buffer at that address, and which of it was written."""
        region = next(each for each in self.buffers if each.origin + each.low == address)
        itemsize = np.dtype(dtype).itemsize
        filled = np.repeat(region.tracker.filled, region.tracker.grain)[region.low : region.high]
        data = region.bytes[region.low : region.high].view(dtype)
        return data, filled.reshape(-1, itemsize).all(1)
