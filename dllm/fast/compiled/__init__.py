"""The model's body inside our loops through torch.compile, where that pays, or from a recording of its operations."""
