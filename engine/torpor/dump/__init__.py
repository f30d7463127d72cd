"""The story of a checkpoint: freeze a tree, grab it, describe it, write its image."""
