"""The steps that make a network's input of a photo, and how they are read from what a network was published with."""
