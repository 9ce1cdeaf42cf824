"""The model to explain: which models are supported, their inputs, their layers by name, their eager modules."""
