"""Metrics: what the model answers once parts of the image are dimmed or removed by a map."""
