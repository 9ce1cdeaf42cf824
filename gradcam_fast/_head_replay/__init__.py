"""Runs of what lies behind a layer, on changed activations: everything before it is recorded once and handed out again.

A recording keeps what every module returned that ended before the layer did. In a replay the model's own forward runs,
but those modules return what was recorded, the layer returns the changed activations, and only what lies behind
computes. No module is replaced or changed: the calls of modules go through an observer meanwhile.
"""
