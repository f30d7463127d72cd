"""Checkpoints: freeze a tree, grab its state, describe it, write its image."""
