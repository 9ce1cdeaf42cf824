"""CUDA devices in the host's memory, for what only PyTorch with CUDA shows and no GPU is needed for.

runtime, graphs, kernels: CUDA's runtime, with state.h between them, and the kernel thread by thread. operators: those
of PyTorch, by the CPU's. plugin: what a pytest that runs there loads first. checks: tests of all that. Knows nothing of
what is tested; tests/test_fake_cuda.py builds and starts it.
"""
