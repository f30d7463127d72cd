"""Address spaces: mappings, the pages in them, and memory that processes have in common."""
