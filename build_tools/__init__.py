"""Finds torch and the compilers, and compiles the kernels with them. Used by setup.py."""
