"""Loaded by ``pytest -p fake_cuda.plugin`` before anything else is done on a CUDA device."""

from .operators import install

library = install()
