"""Explanations recorded in CUDA graphs, and replayed in one launch. Experimental until it has run on a GPU.

So far it has been tested on CPUs only: with a fake recorder, and on the fake CUDA devices of ``tools/fake_cuda``.
"""
