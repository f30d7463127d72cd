"""Generated programs that are saved at any moment, woken, and must see what an undisturbed twin sees."""
