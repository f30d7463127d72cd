"""Code for each processor architecture: today x86-64. Another one would be a second package with the same names."""
