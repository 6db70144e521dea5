"""The loss of masked tokens inside the model's own LM head, and its CUDA graphs."""
