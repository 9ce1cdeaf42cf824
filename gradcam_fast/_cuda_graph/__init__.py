"""Explanations recorded in CUDA graphs and replayed in one launch (experimental: it has not met a GPU yet)."""
