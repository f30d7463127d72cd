"""Address spaces: mappings, their pages, and memory that processes share."""
