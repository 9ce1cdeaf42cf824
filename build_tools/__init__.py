"""Finds what the kernels are built with (torch, the compilers) and compiles them. Used by setup.py."""
