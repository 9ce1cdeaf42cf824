"""Pictures of heatmaps: overlays on images, colormaps, edges, and figures for matplotlib."""
