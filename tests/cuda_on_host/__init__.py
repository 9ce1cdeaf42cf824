"""CUDA devices in the host's memory, for what only PyTorch with CUDA shows and no GPU is needed for.

runtime.cpp: CUDA's runtime, and the kernel thread by thread. operators: PyTorch's operators, by the CPU's. plugin: what
a pytest that runs there loads first. checks: tests of all that. Knows nothing of what is tested;
../test_cuda_on_host.py builds and starts it.
"""
