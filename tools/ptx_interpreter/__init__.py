"""An interpreter of PTX, NVIDIA's assembly: runs a CUDA kernel as nvcc compiled it, without a GPU.

It computes the same bits as a GPU, and raises Fault where a GPU would refuse, hang, or silently get a wrong result:
accesses out of bounds or misaligned, reads of memory that was never written, races, barriers and shuffles in diverged
code. For everything that it cannot do exactly, it raises Unsupported.

    memory = GlobalMemory()
    source = memory.add(data)
    result = memory.make(size)
    Launch(Module(ptx_text).kernel(name), memory, [source, result], blocks=1, threads=256).run()
    values, written = memory.contents(result, np.float32)

A numpy array holds one register of all threads of a cluster, so that one numpy call runs an instruction for all threads
that have reached it.

- ``parser``: PTX text to instructions.
- ``registers``, ``arithmetic``, ``integers``, ``bits``, ``comparisons``, ``conversions``: numbers.
- ``memory``, ``address_spaces``, ``access``, ``async_copies``: bytes. ``races``: whether an access is ordered.
- ``machine``, ``control_flow``, ``synchronization``, ``collectives``: threads.
- ``profile``: counts.

Not modelled: time, caches, atomics, textures, tensor cores, bulk copies, calls, grids of more than one dimension, and
the payload of a NaN.
"""

from .faults import Fault, Unsupported
from .machine import Launch
from .memory import GlobalMemory
from .parser import Module
from .profile import Profile

__all__ = ["Fault", "GlobalMemory", "Launch", "Module", "Profile", "Unsupported"]
