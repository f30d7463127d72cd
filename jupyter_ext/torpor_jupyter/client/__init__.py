"""What asks a server: magics in a kernel, the command `jupyter torpor`; and a helper where there is no server."""
