"""Files by their names: found, opened with the rights of the tree, known again, and made anew."""
