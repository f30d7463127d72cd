"""Acting inside another process: stopping it, its registers and memory, and system calls made in its name."""
