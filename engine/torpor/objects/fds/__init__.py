"""Open file descriptions, one module for each kind; sockets have a folder of their own."""
