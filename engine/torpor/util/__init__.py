"""What all floors use, and what knows nothing of processes."""
