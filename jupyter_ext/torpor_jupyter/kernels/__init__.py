"""Kernels of a server: started, saved, parked, woken, forked; which there are and how they are."""
