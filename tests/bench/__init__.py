"""``make bench``: what a checkpoint and a restore take, beside what this machine can do at all."""
