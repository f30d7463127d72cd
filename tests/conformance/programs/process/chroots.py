"""A child that has a root directory of its own, and one in another place of that."""

import os
from pathlib import Path

from ready import HERE, judge, ready_and_wait, same


def main() -> None:
    place = HERE / "root"
    (place / "inner").mkdir(parents=True)
    (place / "sign").write_text("inside")
    words, answers = os.pipe(), os.pipe()
    children = []
    for directory in ("/", "/inner"):
        child = os.fork()
        if not child:
            os.chroot(place)
            os.chdir(directory)
            os.write(answers[1], b".")
            os.read(words[0], 1)
            told = f"{sorted(os.listdir('/'))} {Path('/sign').read_text()} {os.getcwd()} "
            os.write(answers[1], told.encode())
            os._exit(0)
        children.append(child)
        os.read(answers[0], 1)
    ready_and_wait()
    for directory in ("/", "/inner"):
        os.write(words[1], b"g")
        told = os.read(answers[0], 1000).decode().split(" ")
        same(told[:3], ["['inner',", "'sign']", "inside"], "what a child sees below its root directory")
        same(told[3] in ("/", "/inner"), True, f"the current directory {told[3]}, as one of {directory}")
    for child in children:
        os.waitpid(child, 0)
    same(sorted(os.listdir(place)), ["inner", "sign"], "what the parent sees")


judge(main)
