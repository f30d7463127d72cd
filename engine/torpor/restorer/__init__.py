"""The story of a restore: validate an image, plan, build the tree, verify it, let it go; and how a job begins."""
