"""What is kept of kernels and checkpoints beside the snapshots: records, notebooks, lists of variables."""
