"""Restores: validate an image, plan, build the tree, verify it, let it run. Also how a job is first started."""
