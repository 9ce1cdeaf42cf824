"""Which layer to explain when the caller names none: traced runs of the model, and the rules of the choice."""
