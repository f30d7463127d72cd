"""What each processor has of its own: today x86-64. Another one is a second package with the same names."""
