"""The LM head of a model: what the model does with the head's output, and how to run the head on chosen rows only."""
