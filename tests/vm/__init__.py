"""Virtual machines with the kernels that users run: what Torpor does there, tried."""
