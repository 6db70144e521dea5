"""What trainers measure and draw."""
