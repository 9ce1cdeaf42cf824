"""Compiled explanations: traces prediction, backward and heatmaps into one graph, compiles it, and runs it."""
