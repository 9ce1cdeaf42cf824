"""The fused operator and its pure PyTorch reference: activations and gradients in, heatmaps out."""
