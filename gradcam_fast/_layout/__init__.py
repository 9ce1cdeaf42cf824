"""How a layer's output is laid out: planes, channels last or tokens, and the grid that tokens stand on."""
