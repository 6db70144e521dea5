"""The model's body through torch.compile, inside our loops: whether that pays, and running the body so."""
