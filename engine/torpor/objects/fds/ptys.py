"""Pseudo terminals, and the controlling terminals of sessions (pty(7), ioctl_tty(2), credentials(7)).

A pseudo terminal has a master and a slave side. If the master is in the tree, these are kept: the number of /dev/pts/N,
if it is free (else another one, with a warning), settings (termios), window size, lock, packet mode, exclusive mode,
output stopped by Ctrl-S, the hangup of the slave side, and the mode of its name. A slave side whose master was closed
has hung up, and comes back so. A descriptor of /dev/tty comes back as one of /dev/pts/N.

A session keeps its controlling terminal and that terminal's foreground group. If the terminal is outside of the tree,
the restorer may provide another one instead; if it does not, the session has none, as under nohup(1), and descriptors
that were opened as /dev/tty have hung up.

Unread bytes on either side cannot be read without taking them out: while there are some, the checkpoint is refused and
tried again in a moment. In canonical mode a line that is not ended yet is lost, and no call shows whether there is one:
FIONREAD and poll() count whole lines alone. In another mode they would count it, but a change of the mode and back ends
that line where it is (n_tty_set_termios() in drivers/tty/n_tty.c), so the target would read it before it was typed to
its end. So the checkpoint names the terminals where one may be.

The driver is drivers/tty/pty.c, the line discipline drivers/tty/n_tty.c; poll() there waits for bytes that are in
flight between the two sides.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
import struct
import termios
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.errors import Reason
from torpor.image.image_pb2 import Description, Process, Pty, Session, Tree
from torpor.objects.fds.stdio import TIOCGDEV, Terminal, TerminalState, asked_number
from torpor.objects.kind import Describing, GrabbedDescriptors, OpenFile, Seen, Unsupported, borrowed, first_few
from torpor.objects.opening import KEPT_AT_OPEN, KEPT_BY_LINK, O_LARGEFILE, Opening, naming, reopened
from torpor.objects.paths.opener import Opener
from torpor.probe import probe
from torpor.remote.batch import Call
from torpor.remote.copies import descriptor_of
from torpor.remote.sys import syscall

# include/uapi/linux/major.h, Documentation/admin-guide/devices.txt
SLAVE_MAJOR = 136
MULTIPLEXER = os.makedev(5, 2)
CONTROLLING_TERMINAL = os.makedev(5, 0)

# include/uapi/asm-generic/ioctls.h
TCGETS2, TCSETS2 = 0x802C542A, 0x402C542B
TIOCGPTN, TIOCSPTLCK, TIOCGPTLCK = 0x80045430, 0x40045431, 0x80045439
TIOCGSID, TIOCPKT, TIOCGPKT, TIOCGEXCL, TIOCGPTPEER = 0x5429, 0x5420, 0x80045438, 0x80045440, 0x5441
TERMIOS = struct.Struct("<4IB19B2I")
"""struct termios2: flags of input, output, control and local, line discipline, characters, speeds."""
_INPUT_FLAGS, _LOCAL_FLAGS, _CHARACTERS = 0, 3, 5
WINDOW_SIZE = 8
"""The size of struct winsize in bytes."""
SIG_BLOCK = 0
SIGNALS = struct.Struct("<Q")
SIGTTOU = 22
PTMX = b"/dev/ptmx"
NO_NODE = (0, 0)
_MOST_OPENED = 1024
"""The most ptys that are opened to get a certain number."""
_OF_SLAVES = KEPT_AT_OPEN & ~os.O_PATH | O_LARGEFILE
"""Status flags that TIOCGPTPEER sets. It does not set O_LARGEFILE by itself, as open() by a name does."""
_FOREGROUND = 8  # field of proc_pid_stat(5)

CLOSE = "close it before the checkpoint"


class PseudoTerminal(Terminal):
    """Either side of a pseudo terminal, and /dev/tty."""

    field = "pty"
    is_opened = True

    def matches(self, seen: Seen) -> bool:
        """By the device number."""
        number = seen.stat.st_rdev
        return stat.S_ISCHR(seen.stat.st_mode) and (
            number in (MULTIPLEXER, CONTROLLING_TERMINAL) or os.major(number) == SLAVE_MAJOR
        )

    def grab(self, open_file: OpenFile[TerminalState], pidfd: int, *, content: bool) -> TerminalState:
        """Read everything but a master's unread bytes: slave sides must be read first, see `finish`."""
        with borrowed(pidfd, open_file.references[0].fd) as copy:
            state = TerminalState(asked_number(copy, TIOCGDEV) or 0)
            if is_master(open_file):
                _grab_master(open_file, copy, state)
            elif state.device:
                _grab_slave(open_file, copy, state)
            else:
                state.image.hung_up = bool(_events(copy) & select.POLLHUP)
        return state

    def finish(self, mine: list[OpenFile[TerminalState]], tree: GrabbedDescriptors) -> None:
        """Find the sides of each terminal, and the sessions' controlling terminals."""
        if mine and not tree.terminals:
            tree.terminals = dict(_stats(tree.pids))
        masters = {open_file.state.device: open_file for open_file in mine if is_master(open_file)}
        for open_file in mine:
            master = masters.get(open_file.state.device)
            if is_master(open_file):
                open_file.state.unsupported += _unsupported_at_master(open_file, masters, tree)
            elif master and open_file.state.node in (master.state.node, NO_NODE):
                open_file.state.other, master.state.other = master, open_file
                master.state.image.exclusive |= open_file.state.image.exclusive
                master.state.image.stopped |= open_file.state.image.stopped

    def outside(self, open_file: OpenFile[TerminalState], tree: GrabbedDescriptors) -> str:
        """A slave side whose master is outside of the tree, unless it is only a session's controlling terminal."""
        if is_master(open_file) or open_file.state.other or not open_file.state.device:
            return ""
        if not self.stands_for(open_file, tree) and open_file.state.device in {
            one.tty for one in tree.terminals.values()
        }:
            return ""
        return super().outside(open_file, tree)

    def unsupported(self, open_file: OpenFile[TerminalState], tree: GrabbedDescriptors) -> Iterator[Unsupported]:
        """It must be possible to query it, both sides must be in the tree, and nothing may be in flight."""
        state = open_file.state
        if not state.device and not state.image.hung_up:
            yield Unsupported("it is a device whose state is unknown")
        if is_master(open_file) or state.other:
            # Before the freeze bytes in flight may arrive at any moment: only the freeze can tell.
            yield from (one for one in state.unsupported if tree.content or not one.passing)
        if is_master(open_file) and not (state.image.ended or state.image.locked or state.other):
            yield Unsupported(
                "its other side is open outside of the tree, or nobody has opened it yet",
                "checkpoint the whole tree of which both sides are a part",
                passing=True,
            )

    def describe(
        self, open_file: OpenFile[TerminalState], out: Description, tree: GrabbedDescriptors, image: Describing
    ) -> None:
        """Write the side, and with the first side the terminal."""
        out.pty.master = is_master(open_file)
        out.pty.pty = _index(open_file, image)

    def notices(self, mine: Sequence[OpenFile[TerminalState]], tree: GrabbedDescriptors) -> Iterator[str]:
        """Lines in canonical mode that are not ended yet: nothing shows whether there are any."""
        numbers = sorted(
            open_file.state.image.number
            for open_file in mine
            if is_master(open_file) and open_file.state.other and not open_file.state.image.ended
            if TERMIOS.unpack(open_file.state.image.termios)[_LOCAL_FLAGS] & termios.ICANON
        )
        if numbers:
            names = first_few([f"/dev/pts/{number}" for number in numbers])
            yield f"an unfinished line of input, if there is one, is not kept: at {names}"

    def validate(self, mine: dict[int, Description], image: Tree, stdio: Sequence[int]) -> Iterator[Reason]:
        """The image's terminals must be valid, and new ones must be possible here."""
        masters = [description.pty.pty for description in mine.values() if description.pty.master]
        if len(set(masters)) != len(masters):
            yield Reason("the image", "it has two masters of one terminal")
        for number in sorted({description.pty.pty for description in mine.values()}):
            if number >= len(image.ptys):
                yield Reason("the image", f"it names terminal {number}, which is not in it")
            elif number in masters and (image.ptys[number].hung_up or image.ptys[number].outside):
                yield Reason("the image", f"it has a master of terminal {number}, which has none")
        if not os.access(PTMX, os.R_OK | os.W_OK):
            yield Reason("a pseudo terminal of the image", f"{PTMX.decode()} cannot be opened here", "mount devpts")

    def open(self, mine: dict[int, Description], opening: Opening) -> None:
        """Make each terminal once, and open the sides that the tree had."""
        by_pty: dict[int, list[int]] = {}
        for index, description in mine.items():
            by_pty.setdefault(description.pty.pty, []).append(index)
        for number, indexes in by_pty.items():
            with naming(mine[indexes[0]]):
                _make(opening, number, indexes)


def is_master(open_file: OpenFile[TerminalState]) -> bool:
    """Whether it is a master side."""
    return open_file.stat.st_rdev == MULTIPLEXER


def settings(fd: int) -> tuple[bytes, bytes]:
    """The struct termios2 and struct winsize of a terminal; at a master those of its slave side.

    Raises:
        OSError: it is not a terminal.
    """
    modes, window = bytearray(TERMIOS.size), bytearray(WINDOW_SIZE)
    syscall(NR.ioctl, fd, TCGETS2, modes)
    syscall(NR.ioctl, fd, termios.TIOCGWINSZ, window)
    return bytes(modes), bytes(window)


def give_settings(fd: int, pty: Pty) -> None:
    """Set a terminal's settings and window size to those of the image.

    Raises:
        OSError: the kernel does not accept them.
    """
    if pty.termios:
        fcntl.ioctl(fd, TCSETS2, pty.termios)
    if pty.window:
        fcntl.ioctl(fd, termios.TIOCSWINSZ, pty.window)


# ------------------------------------------------------------------------------------------ from a live tree


def _grab_master(open_file: OpenFile[TerminalState], copy: int, state: TerminalState) -> None:
    image = state.image
    image.number = os.minor(state.device)
    image.termios, image.window = settings(copy)
    image.locked = bool(asked_number(copy, TIOCGPTLCK))
    image.packet = bool(asked_number(copy, TIOCGPKT))
    image.master_exclusive = bool(asked_number(copy, TIOCGEXCL))
    image.ended = bool(_events(copy) & select.POLLHUP)
    folder = os.path.dirname(open_file.link)
    name = f"{folder}/{image.number}" if os.path.basename(folder) == "pts" else f"{folder}/pts/{image.number}"
    try:
        node = os.stat(f"/proc/{open_file.references[0].pid}/root{name}")
    except OSError as error:
        state.unsupported.append(Unsupported(f"{name} cannot be looked at: {error.strerror}", CLOSE))
        return
    state.node = (node.st_dev, node.st_ino)
    image.mode, image.uid, image.gid = stat.S_IMODE(node.st_mode), node.st_uid, node.st_gid


def _grab_slave(open_file: OpenFile[TerminalState], copy: int, state: TerminalState) -> None:
    image = state.image
    if open_file.stat.st_rdev != CONTROLLING_TERMINAL:
        state.node = (open_file.stat.st_dev, open_file.stat.st_ino)
    image.number, image.outside = os.minor(state.device), True
    image.termios, image.window = settings(copy)
    image.exclusive = bool(asked_number(copy, TIOCGEXCL))
    if asked_number(copy, termios.TIOCGETD):
        state.unsupported.append(Unsupported("it has a line discipline of its own (TIOCSETD)", CLOSE))
    events = _events(copy)  # poll() waits for bytes in flight from the master
    # If there are fewer bytes than VMIN, poll() does not report them.
    if (count := asked_number(copy, termios.FIONREAD) or 0) or events & select.POLLIN:
        state.unsupported.append(_waiting("typed", count))
    image.stopped = not events & select.POLLOUT


def _unsupported_at_master(
    open_file: OpenFile[TerminalState],
    masters: Mapping[int, OpenFile[TerminalState]],
    tree: GrabbedDescriptors,
) -> Iterator[Unsupported]:
    if masters[open_file.state.device] is not open_file:
        yield Unsupported("another one in the tree has the same number", CLOSE)
    try:
        copy = descriptor_of(*open_file.references[0])
    except OSError:
        if tree.content and probe().pidfd_getfd:
            raise
        return  # closed before the freeze, or looked at under the freeze: no problem
    try:
        leader = asked_number(copy, TIOCGSID)
        events, waiting = _events(copy), asked_number(copy, termios.FIONREAD) or 0
    finally:
        os.close(copy)
    if leader is not None and leader not in tree.pids:
        yield Unsupported("it is the controlling terminal of a session whose leader is outside of the tree", CLOSE)
    if waiting:
        yield _waiting("written", waiting)
    elif events & (select.POLLIN | select.POLLPRI) and not events & select.POLLHUP:
        yield Unsupported("a status of its packet mode was not read", "let it be read", passing=True)


def _stats(pids: Sequence[int]) -> Iterator[tuple[int, procfs.Stat]]:
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):  # before the freeze processes may end
            yield pid, procfs.stat(pid)


def _waiting(how: str, count: int) -> Unsupported:
    if not count:
        return Unsupported(f"an end of file (Ctrl-D) that was {how} was not read", "let it be read", passing=True)
    return Unsupported(f"{count} bytes that were {how} were not read", "let them be read", passing=True)


def _events(fd: int) -> int:
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLOUT | select.POLLPRI)
    return next((event for _, event in poll.poll(0)), 0)


def _index(open_file: OpenFile[TerminalState], image: Describing) -> int:
    """The index of a terminal in the image, which its first side adds."""
    state = open_file.state
    key = state.device or -len(image.tree.ptys)  # each terminal that has hung up is a separate one
    if key not in image.ptys:
        image.ptys[key] = len(image.tree.ptys)
        image.tree.ptys.append((state.other.state if state.other and not is_master(open_file) else state).image)
    return image.ptys[key]


def describe_sessions(image: Describing) -> list[Reason]:
    """Write the sessions' controlling terminals, once all descriptions are in the image.

    Returns:
        Why a session cannot be kept.
    """
    stats = {pid: image.grabbed.terminals[pid] for pid in image.grabbed.pids if pid in image.grabbed.terminals}
    processes = dict(zip(image.grabbed.pids, image.tree.processes, strict=True))
    # A group lasts until its last process has been waited for: a shell takes the terminal back only then.
    groups = {one.pgrp: processes[pid].pgid for pid, one in stats.items()}
    by_session: dict[int, int] = {}
    reasons = []
    for pid, one in stats.items():
        if one.tty and not processes[pid].zombie and one.session not in by_session:
            by_session[one.session] = one.tty
            session = image.tree.sessions.add(sid=processes[pid].sid, terminal=_terminal(one.tty, image))
            foreground = int(one.fields[_FOREGROUND - 1])
            session.foreground = groups.get(foreground, 0)
            if not session.foreground and not image.tree.ptys[session.terminal].outside:
                words = "the foreground process group of its terminal has ended"
                reasons.append(Reason(f"session {session.sid}", words, "try again", passing=True))
    for pid, one in stats.items():
        processes[pid].no_terminal = not one.tty and one.session in by_session and not processes[pid].zombie
    return reasons


def _terminal(device: int, image: Describing) -> int:
    if device not in image.ptys:
        open_file = next(
            (open_file for open_file in image.grabbed.of(Terminal) if open_file.state.device == device), None
        )
        image.ptys[device] = len(image.tree.ptys)
        image.tree.ptys.append(open_file.state.image if open_file else Pty())
        image.tree.ptys[-1].outside = True
    return image.ptys[device]


# -------------------------------------------------------------------------------------------- from an image


def validate_sessions(image: Tree) -> Iterator[Reason]:
    """The image's sessions and settings must be valid."""
    for pty in image.ptys:
        if len(pty.termios) not in (0, TERMIOS.size) or len(pty.window) not in (0, WINDOW_SIZE):
            yield Reason("the image", "it has invalid terminal settings")
        if pty.stopped and not pty.termios:
            yield Reason("the image", "it has a terminal whose output is held back, but without settings")
    speaking = {one.sid for one in image.processes if not one.zombie and not one.no_terminal}
    groups = {0, *(one.pgid for one in image.processes)}
    for session in image.sessions:
        if session.terminal >= len(image.ptys):
            yield Reason("the image", "it has a session with a terminal that is not in it")
        if session.sid not in speaking or session.foreground not in groups:
            yield Reason(
                "the image",
                f"its session {session.sid} has a controlling terminal, but no process that could have taken it",
            )


def lost(image: Tree) -> int | None:
    """The index of the outside terminal that was the controlling one of the tree's sessions; None if none was."""
    mine = [session for session in image.sessions if image.ptys[session.terminal].outside]
    # A session without a number is the restorer's own, and so is its terminal.
    mine = [session for session in mine if session.sid > 1]
    mine.sort(key=lambda session: session.sid != image.processes[0].sid)
    return mine[0].terminal if mine else None


def _make(opening: Opening, number: int, indexes: Sequence[int]) -> None:
    """Make a terminal, or use the restorer's, and open the sides in `indexes`."""
    pty, image = opening.image.ptys[number], opening.image
    if pty.outside and number in opening.terminals:
        for index in indexes:
            opening.place(
                index,
                reopened(
                    os.dup(opening.terminals[number]), image.descriptions[index].flags & KEPT_BY_LINK | os.O_NONBLOCK
                ),
            )
        return
    mine = map(image.descriptions.__getitem__, indexes)
    flags = next((one.flags & KEPT_BY_LINK for one in mine if one.pty.master), os.O_RDWR)
    master = _open_master(pty, opening, opening.openers.description(indexes[0]), flags)
    try:
        _unlock(master, locked=False)
        give_settings(master, pty)
        slaves = [index for index in indexes if not image.descriptions[index].pty.master]
        controlling = not (pty.hung_up or pty.outside) and number in {session.terminal for session in image.sessions}
        if slaves or pty.ended or controlling:
            slave = _peer(master, os.O_RDWR)
            try:
                _set_slave(pty, master, slave)
                for index in slaves:
                    opening.place(index, _peer(master, image.descriptions[index].flags & _OF_SLAVES | os.O_NONBLOCK))
                if controlling:
                    opening.keep_terminal(number, slave)
                if pty.exclusive:
                    fcntl.ioctl(slave, termios.TIOCEXCL)
            finally:
                os.close(slave)
        if pty.packet:
            fcntl.ioctl(master, TIOCPKT, struct.pack("i", 1))
        if pty.master_exclusive:
            fcntl.ioctl(master, termios.TIOCEXCL)
        _unlock(master, locked=pty.locked)
        for index in indexes:
            if image.descriptions[index].pty.master:
                opening.place(index, os.dup(master))
    finally:
        os.close(master)  # the only one, if the terminal has hung up


def _open_master(pty: Pty, opening: Opening, opener: Opener, flags: int) -> int:
    """The master of a new terminal. The kernel assigns the lowest free number, so lower ones are taken meanwhile."""
    if pty.hung_up or pty.outside:
        return _new_master(opener, flags)
    opened: list[int] = []
    try:
        while len(opened) < _MOST_OPENED:
            try:
                opened.append(_new_master(opener, flags))
            except OSError:
                if not opened:
                    raise
                break
            got = asked_number(opened[-1], TIOCGPTN) or 0
            if got == pty.number:
                return opened.pop()
            if got > pty.number:
                break
        got = asked_number(opened[0], TIOCGPTN) or 0
        opening.warnings.append(f"the terminal /dev/pts/{pty.number} is /dev/pts/{got} now: its number was taken")
        return opened.pop(0)
    finally:
        for fd in opened:
            os.close(fd)


def _new_master(opener: Opener, flags: int) -> int:
    return opener.open(PTMX, flags | os.O_NOCTTY)


def _unlock(master: int, *, locked: bool) -> None:
    fcntl.ioctl(master, TIOCSPTLCK, struct.pack("i", locked))


def _peer(master: int, flags: int) -> int:
    return syscall(NR.ioctl, master, TIOCGPTPEER, flags | os.O_NOCTTY)  # O_CLOEXEC would be kept as a status flag


def _set_slave(pty: Pty, master: int, slave: int) -> None:
    if pty.mode and not pty.hung_up:
        os.fchmod(slave, pty.mode & 0o777)
        if procfs.is_root():
            os.fchown(slave, pty.uid, pty.gid)
    if pty.stopped:
        words = TERMIOS.unpack(pty.termios)
        character = words[_CHARACTERS + termios.VSTOP]
        writable = fcntl.fcntl(master, fcntl.F_GETFL) & os.O_ACCMODE in (os.O_WRONLY, os.O_RDWR)
        if words[_INPUT_FLAGS] & termios.IXON and character and writable:
            os.write(master, bytes([character]))
        else:
            fcntl.ioctl(slave, termios.TCXONC, termios.TCOOFF)
        _events(slave)  # waits until the character has arrived


def take(session: Session, opened: Mapping[int, int]) -> Iterator[Call]:
    """The calls by which a session's leader takes its controlling terminal, before it has children.

    Args:
        session: of the image.
        opened: descriptors of terminals, by their index in the image.
    """
    if session.terminal in opened:
        words = f"taking the controlling terminal of session {session.sid}"
        yield Call(NR.ioctl, (opened[session.terminal], termios.TIOCSCTTY, 0), 0, words)


def restore_calls(process: Process, image: Tree, opened: Mapping[int, int]) -> Iterator[Call]:
    """The calls for a process's controlling terminal, when all groups exist and its slots are open."""
    session = next((session for session in image.sessions if session.sid == process.sid), None)
    if session is None or session.terminal not in opened:
        return
    fd = opened[session.terminal]
    speaker = next(one for one in image.processes if one.sid == session.sid and not one.zombie and not one.no_terminal)
    if process.pid == speaker.pid:
        group = session.foreground or image.processes[0].pgid
        # In the background it would be stopped; its own mask is set when it is released.
        mask = SIGNALS.pack(1 << (SIGTTOU - 1))
        yield Call(NR.rt_sigprocmask, (SIG_BLOCK, mask, 0, SIGNALS.size), 0, "blocking SIGTTOU")
        words = f"bringing process group {group} to the foreground"
        yield Call(NR.ioctl, (fd, termios.TIOCSPGRP, struct.pack("i", group)), 0, words)
    if process.no_terminal:
        yield Call(NR.ioctl, (fd, termios.TIOCNOTTY, 0), 0, "giving up the controlling terminal")
