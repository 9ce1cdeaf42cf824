"""The model explained: what is supported, its inputs, its layers by name, its eager view when it is compiled."""
