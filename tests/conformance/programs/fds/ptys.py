"""Pseudo terminals with both sides in the tree: settings, sizes, modes, names, ends, sessions and their groups."""

import fcntl
import os
import select
import signal
import struct
import termios
from typing import Any

from ready import HERE, Word, expect, judge, ready_and_wait, same

TIOCGPTN, TIOCSPTLCK, TIOCGPTLCK = 0x80045430, 0x40045431, 0x80045439
TIOCPKT, TIOCGPKT, TIOCGEXCL, TIOCGPTPEER = 0x5420, 0x80045438, 0x80045440, 0x5441
VSTOP, VSTART = 9, 8


def number(fd: int, request: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(fd, request, bytes(4)))[0])


def pair() -> tuple[int, int]:
    master, slave = os.openpty()
    os.set_inheritable(master, False)
    return master, slave


def raw(fd: int) -> None:
    modes = termios.tcgetattr(fd)
    modes[0] = modes[1] = modes[3] = 0
    modes[6][termios.VMIN] = b"\1"
    modes[6][termios.VTIME] = b"\0"
    termios.tcsetattr(fd, termios.TCSANOW, modes)


def window(fd: int) -> tuple[int, ...]:
    return struct.unpack("4H", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))


def events(fd: int) -> int:
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLOUT | select.POLLPRI)
    return next((event for _, event in poll.poll(0)), 0)


def read_line(fd: int) -> bytes:
    got = b""
    while not got.endswith(b"\n"):
        select.select([fd], [], [])  # the kernel hands it on a little later
        got += os.read(fd, 100)
    return got


def shell(terminal: str, told: int) -> None:
    """A session leader with a job in the foreground, that says on its terminal what it is asked there."""
    os.setsid()
    tty = os.open(terminal, os.O_RDWR)  # a session's first one becomes its controlling terminal
    again = os.open(terminal, os.O_WRONLY)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    job = os.fork()
    if job == 0:
        os.setpgid(0, 0)
        caught = []
        signal.signal(signal.SIGINT, lambda *_: caught.append("INT"))
        os.tcsetpgrp(tty, os.getpid())
        os.write(told, b"!")
        while (line := read_line(tty)) != b"end\n":
            words = f"{line.decode().strip()} {os.tcgetpgrp(again) == os.getpid()} {''.join(caught)}\n"
            os.write(again, words.encode())
        os._exit(7)
    loner = os.fork()
    if loner == 0:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        fcntl.ioctl(tty, termios.TIOCNOTTY)
        os.write(told, b"!")
        signal.sigwait({signal.SIGTERM})
        try:
            os.open("/dev/tty", os.O_RDWR)
        except OSError:
            os._exit(8)
        os._exit(0)
    _, status = os.waitpid(job, 0)
    os.tcsetpgrp(tty, os.getpgrp())
    os.kill(loner, signal.SIGTERM)
    _, other = os.waitpid(loner, 0)
    os.write(tty, f"{os.waitstatus_to_exitcode(status)} {os.waitstatus_to_exitcode(other)}\n".encode())
    signal.sigwait({signal.SIGHUP})
    os._exit(9)


def leave(terminal: int) -> None:
    """A session leader that has closed its controlling terminal, and opens it again when it is told."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGHUP})
    os.setsid()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    os.close(terminal)
    signal.sigwait({signal.SIGUSR1})
    os.write(os.open("/dev/tty", os.O_RDWR), b"back")
    signal.sigwait({signal.SIGHUP})
    os._exit(0)


def slow_shell(terminal: int) -> None:
    """A session leader that has not noticed yet that its job has ended, whose group is still in the foreground."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTTOU, signal.SIGHUP})
    os.setsid()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    job = os.fork()
    if job == 0:
        os.setpgid(0, 0)
        os.tcsetpgrp(terminal, os.getpid())
        os._exit(7)
    os.waitid(os.P_PID, job, os.WEXITED | os.WNOWAIT)
    os.write(terminal, b"!")
    signal.sigwait({signal.SIGUSR1})
    foreground, (_, status) = os.tcgetpgrp(terminal), os.waitpid(job, 0)
    os.tcsetpgrp(terminal, os.getpgrp())
    told = f"{foreground == job} {os.waitstatus_to_exitcode(status)} {os.tcgetpgrp(terminal) == os.getpgrp()}"
    os.write(terminal, told.encode())
    signal.sigwait({signal.SIGHUP})
    os._exit(0)


def states() -> dict[str, Any]:
    plain, slave = pair()
    modes = termios.tcgetattr(slave)
    modes[3] &= ~(termios.ECHO | termios.ICANON)
    modes[4] = modes[5] = termios.B9600
    modes[6][termios.VINTR], modes[6][termios.VMIN] = b"\x07", b"\3"
    termios.tcsetattr(slave, termios.TCSANOW, modes)
    fcntl.ioctl(plain, termios.TIOCSWINSZ, struct.pack("4H", 33, 101, 640, 480))
    os.set_blocking(plain, False)
    reader = os.open(os.ttyname(slave), os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    packets, answer = pair()
    raw(answer)
    fcntl.ioctl(packets, TIOCPKT, struct.pack("i", 1))
    locked = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
    fcntl.ioctl(locked, termios.TIOCEXCL)
    ended, last = pair()
    os.close(last)
    left, last = pair()
    raw(last)
    leader = os.fork()
    if leader == 0:
        os.close(left)
        leave(last)
    os.close(last)
    while not events(left) & select.POLLHUP:
        pass
    prompt, last = pair()
    raw(last)
    slow = os.fork()
    if slow == 0:
        os.close(left)
        os.close(prompt)
        slow_shell(last)
    os.close(last)
    os.read(prompt, 1)
    gone, hung = pair()
    os.close(gone)
    alone, exclusive = pair()
    fcntl.ioctl(exclusive, termios.TIOCEXCL)
    stopped, waiting = pair()
    raw(waiting)
    modes = termios.tcgetattr(waiting)
    modes[0] = termios.IXON
    termios.tcsetattr(waiting, termios.TCSANOW, modes)
    os.write(stopped, modes[6][VSTOP])
    while events(waiting) & select.POLLOUT:
        pass
    os.fchmod(slave, 0o622)
    return {
        "plain": plain, "slave": slave, "reader": reader, "packets": packets, "answer": answer, "locked": locked,
        "ended": ended, "hung": hung, "alone": alone, "exclusive": exclusive, "stopped": stopped, "waiting": waiting,
        "left": left, "leader": leader, "prompt": prompt, "slow": slow,
    }  # fmt: skip


def check(at: dict[str, Any], word: Word) -> None:
    plain, slave, reader = at["plain"], at["slave"], at["reader"]
    for fd in (slave, at["answer"], at["exclusive"], at["waiting"]):
        expect(os.path.samestat(os.stat(os.ttyname(fd)), os.fstat(fd)), f"the name {os.ttyname(fd)}")
    if not word.killed:
        same(names(at), at["names"], "names in /dev/pts")
    modes = termios.tcgetattr(slave)
    same(modes[3] & (termios.ECHO | termios.ICANON), 0, "local flags")
    same((modes[4], modes[6][termios.VINTR], modes[6][termios.VMIN]), (termios.B9600, b"\x07", 3), "settings")
    same((window(plain), window(slave)), ((33, 101, 640, 480),) * 2, "the window's size")
    same((os.get_blocking(plain), os.get_blocking(slave), os.get_blocking(reader)), (False, True, False), "blocking")
    same(os.fstat(slave).st_mode & 0o777, 0o622, "the mode of a name")
    os.write(plain, b"abc")
    same(os.read(slave, 10), b"abc", "what is typed")
    os.write(slave, b"x\n")
    same(read_line(plain), b"x\r\n", "what is written")
    try:
        os.read(reader, 1)
        expect(False, "a read of nothing came back")
    except BlockingIOError:
        pass
    try:
        os.write(reader, b"x")
        expect(False, "a reader can write")
    except OSError:
        pass

    packets, answer = at["packets"], at["answer"]
    same(number(packets, TIOCGPKT), 1, "packet mode")
    os.write(answer, b"data")
    same(os.read(packets, 10), b"\0data", "a packet")
    termios.tcflush(answer, termios.TCIFLUSH)
    same(os.read(packets, 10), b"\1", "a status of packet mode")

    same((number(at["locked"], TIOCGPTLCK), number(plain, TIOCGPTLCK)), (1, 0), "locks")
    try:
        fcntl.ioctl(at["locked"], TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY)
        expect(False, "what is locked can be opened")
    except OSError:
        pass
    same(events(at["locked"]), select.POLLOUT, "a master that nobody has opened the other side of")
    expect(events(at["ended"]) & select.POLLHUP, "an other side that is closed is open")
    again = os.open(f"/dev/pts/{number(at['ended'], TIOCGPTN)}", os.O_RDWR | os.O_NOCTTY)
    expect(not events(at["ended"]) & select.POLLHUP, "the other side cannot be opened again")
    os.close(again)
    same((os.read(at["hung"], 10), os.isatty(at["hung"])), (b"", False), "a terminal that hung up")
    same(number(at["exclusive"], TIOCGEXCL), 1, "exclusive mode")
    same([number(at[one], TIOCGEXCL) for one in ("locked", "alone", "slave")], [1, 0, 0], "that of masters")
    expect(events(at["left"]) & select.POLLHUP, "a controlling terminal that nobody has open is open")
    os.kill(at["leader"], signal.SIGUSR1)
    while events(at["left"]) & select.POLLHUP:
        pass
    same(os.read(at["left"], 10), b"back", "a controlling terminal that was opened again")
    os.close(at["left"])
    same(os.waitpid(at["leader"], 0), (at["leader"], 0), "the end of a session")

    os.kill(at["slow"], signal.SIGUSR1)
    same(os.read(at["prompt"], 20), b"True 7 True", "a job in the foreground that has ended")
    os.close(at["prompt"])
    same(os.waitpid(at["slow"], 0), (at["slow"], 0), "the end of a session whose job has ended")

    same(events(at["waiting"]) & select.POLLOUT, 0, "output that is held back")
    os.write(at["stopped"], termios.tcgetattr(at["waiting"])[6][VSTART])
    os.write(at["waiting"], b"on")
    same(os.read(at["stopped"], 10), b"on", "output that was held back")


def names(at: dict[str, Any]) -> list[int]:
    return [number(at[one], TIOCGPTN) for one in ("plain", "packets", "locked", "ended", "alone", "stopped")]


def main() -> None:
    at = states()
    held = [fd for name, fd in at.items() if name not in ("leader", "slow")]
    at["names"] = names(at)
    screen, terminal = pair()
    name = os.ttyname(terminal)
    modes = termios.tcgetattr(terminal)
    modes[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, modes)
    told = os.pipe()
    leader = os.fork()
    if leader == 0:
        for fd in (terminal, screen, *held):
            os.close(fd)
        shell(name, told[1])
    os.close(terminal)
    os.read(told[0], 1), os.read(told[0], 1)
    os.write(screen, b"first\n")
    same(read_line(screen), b"first True \r\n", "a job in the foreground")
    word = ready_and_wait()
    check(at, word)

    expect(word.killed or f"/dev/pts/{number(screen, TIOCGPTN)}" == name, "the name of a controlling terminal")
    os.write(screen, b"\3second\n")
    same(read_line(screen), b"second True INT\r\n", "a job in the foreground after Ctrl-C")
    os.write(screen, b"end\n")
    same(read_line(screen), b"7 8\r\n", "the ends of a job and of one without a terminal")
    os.close(screen)
    same(os.waitstatus_to_exitcode(os.waitpid(leader, 0)[1]), 9, "the end of the session by SIGHUP")
    expect(HERE.exists(), "the directory")


judge(main)
