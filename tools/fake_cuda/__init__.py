"""CUDA devices in the host's memory: runs the tests and benchmarks that need a GPU on a machine without one.

PyTorch's own CUDA code runs: its allocator, streams, events and graph capture. Below it, a preloaded library replaces
the CUDA runtime, and PyTorch's operators on CUDA tensors run on the CPU:

- ``state.h``, ``runtime.cpp``, ``graphs.cpp``: devices, memory, streams, events, and stream capture.
- ``kernel_launch.cpp``: launches of gradcam_fast's kernel, whose device code runs thread by thread.
- ``operators.py``: PyTorch's operators for CUDA tensors, each by the CPU operator of the same name.
- ``plugin.py``: the pytest plugin (``-p fake_cuda.plugin``) that installs the operators.

It shows wrong captures, hidden waits and wrong launches. It does not model time, concurrency, or a GPU's instructions.
``tests/test_fake_cuda.py`` builds the library, and starts processes that use it.
"""
