"""Training the bundled model from scratch, and measuring its accuracy."""
