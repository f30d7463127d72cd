"""Jupyter on Torpor: the kernel provisioner and the server extension."""
