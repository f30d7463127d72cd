"""How the parts of a set talk to each other. A set is several process trees that are saved and woken as one."""
