"""Clients of a server: magics in a kernel, the command `jupyter torpor`; and a helper for use without a server."""
