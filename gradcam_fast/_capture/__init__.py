"""One forward of the model: activations at the layers, scores, and gradients of the scores at the layers."""
