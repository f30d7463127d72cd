"""Files and their names: finding, opening with the tree's credentials, recognizing, and making them again."""
