"""Processes and threads: who they are, whose, and what the kernel keeps for each."""
