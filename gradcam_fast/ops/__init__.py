"""The operator: activations and gradients in, heatmaps out. Fused kernels in C++ and CUDA, and a PyTorch reference."""
