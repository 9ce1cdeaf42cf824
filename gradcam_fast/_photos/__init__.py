"""Photos: read from anything that holds one, and the steps that make a network's input of them."""
