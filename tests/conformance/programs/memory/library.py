"""A library of the program's own, loaded from its folder: code, constants and variables."""

import ctypes
import subprocess

from ready import HERE, judge, ready_and_wait, same

SOURCE = """
static int counter = 40;
const char *edition(void) { return "the first edition"; }
int next(void) { return ++counter; }
"""


def main() -> None:
    (HERE / "library.c").write_text(SOURCE)
    subprocess.run(["gcc", "-shared", "-fPIC", HERE / "library.c", "-o", HERE / "library.so"], check=True)
    library = ctypes.CDLL(str(HERE / "library.so"))
    library.edition.restype = ctypes.c_char_p
    same(library.next(), 41, "a variable of the library before")
    ready_and_wait()
    same(library.next(), 42, "a variable of the library")
    same(library.edition(), b"the first edition", "a constant of the library")


judge(main)
