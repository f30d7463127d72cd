"""Processes and threads: their ids and relations, and the state that the kernel keeps for each."""
