"""What kernels take of a GPU and how long operations would take at its ceilings, reckoned without one."""
