"""Loaded by ``pytest -p cuda_on_host.plugin`` before anything else is done on a CUDA device."""

from .operators import install

library = install()
