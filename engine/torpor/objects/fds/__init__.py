"""Open file descriptions, a module for each kind; sockets have a folder of their own."""
