"""One module per kind of kernel object that a process holds: its dump and its restore stand side by side."""
