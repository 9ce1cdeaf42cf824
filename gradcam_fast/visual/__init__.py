"""Heatmaps for people: laid over photos, coloured, and drawn as figures."""
