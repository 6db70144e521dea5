"""The LM head of a model: what the model does with its output, and how to run it on chosen rows only."""
