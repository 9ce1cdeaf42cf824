"""A GPU of numpy arrays, for PTX as nvcc writes it: it computes to the bit, and refuses what a GPU would not survive.

parse: text to instructions. registers, arithmetic, integers, bits, comparisons, convert: numbers. memory, access,
copies: bytes. races: who may touch them when. waiting, together: barriers and shuffles. flow, layout, machine: the
threads of a cluster of blocks, and their names for things. profile: counts. Knows nothing of the kernels it runs. What
it cannot do exactly it does not do: Unsupported.

Not modelled: time, caches, atomics, textures, tensor cores, bulk copies, calls, grids of more than one dimension, and
the payload of a NaN.
"""

from .faults import Fault, Unsupported
from .machine import Launch
from .memory import GlobalMemory
from .parse import Module
from .profile import Profile

__all__ = ["Fault", "GlobalMemory", "Launch", "Module", "Profile", "Unsupported"]
