"""vim in a pane of tmux: the screen as it was, the cursor, keys that are typed on, a window that changes its size."""

import os
import shutil
import subprocess
import sys
import time

from ready import HERE, expect, judge, ready_and_wait, same

TMUX = shutil.which("tmux")
VIM = shutil.which("vim.tiny") or shutil.which("vim.basic") or shutil.which("vim")
TEXT = "".join(f"line {n}: {'x' * (n % 50)}\n" for n in range(200))


def tmux(*arguments: str) -> str:
    """The answer of the server to a command."""
    done = subprocess.run(
        [str(TMUX), "-S", str(HERE / "socket"), *arguments], capture_output=True, text=True, timeout=100, check=True
    )
    return done.stdout


def screen() -> str:
    where = tmux("display-message", "-p", "-t", "work", "#{cursor_x} #{cursor_y} #{alternate_on}")
    return where + tmux("capture-pane", "-p", "-e", "-t", "work")


def shows(text: str) -> str:
    """The screen, once it shows a text."""
    deadline = time.monotonic() + 100
    while text not in (now := screen()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{text!r} is not on the screen:\n{now}")
        time.sleep(0.01)
    return now


def at_rest() -> str:
    """The screen when it changes no more, and nothing is on its way to it: vim waits for a key."""
    before, now = "", screen()
    while now != before or not waits():
        time.sleep(0.2)
        before, now = now, screen()
    return now


def waits() -> bool:
    """Whether vim sleeps."""
    with open(f"/proc/{tmux('display-message', '-p', '-t', 'work', '#{pane_pid}').strip()}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0] == b"S"


def main() -> None:
    (HERE / "text").write_text(TEXT)
    server = subprocess.Popen(
        [str(TMUX), "-S", str(HERE / "socket"), "-f", "/dev/null", "-D"], stderr=subprocess.STDOUT
    )
    while not (HERE / "socket").exists():
        time.sleep(0.01)
    tmux("set", "-g", "default-terminal", "screen")
    tmux("set", "-g", "status-interval", "0")
    tmux("new-session", "-d", "-s", "work", "-x", "90", "-y", "30", f"{VIM} -u NONE -i NONE -n {HERE / 'text'}")
    shows("line 20")
    tmux("send-keys", "-t", "work", "100G", "A", " and more", "Escape", "k")
    shows("and more")
    tmux("send-keys", "-t", "work", "o", "half a li")
    shows("half a li")
    before = at_rest()
    ready_and_wait()
    same(at_rest(), before, "the screen")
    tmux("send-keys", "-t", "work", "ne", "Escape", ":w", "Enter")
    shows("written")
    lines = (HERE / "text").read_text().splitlines()
    same(lines[99:101], ["half a line", TEXT.splitlines()[99] + " and more"], "what vim wrote")
    tmux("resize-window", "-t", "work", "-x", "70", "-y", "20")
    for option in ("columns=70", "lines=20"):
        deadline = time.monotonic() + 100  # tmux tells of the new size a little later
        while option not in screen() and time.monotonic() < deadline:
            tmux("send-keys", "-t", "work", f":set {option.partition('=')[0]}?", "Enter")
            time.sleep(0.1)
        expect(option in screen(), f"the window does not have {option}")
    tmux("kill-server")
    same(server.wait(100), 0, "the server")


if TMUX is None or VIM is None:
    print("needs tmux and vim")
    sys.exit(77)
os.environ["TERM"] = "xterm"
judge(main)
