"""The built-in transport: a star of TCP connections, with part 0 in its middle.

Both ends of each connection prove that they have the key (HMAC-SHA256 over two random numbers), and each message is
authenticated by a key that both derive from that, with its direction and its number, so that none can be changed, left
out or said again. Nothing is encrypted: what the parts tell each other is as secret as what the program sends itself.

    part k                                     part 0
    nonce                            ->
                                     <-        nonce, HMAC(key, "0", both nonces)
    HMAC(key, "k", both nonces)      ->
    each message: length (4 bytes), HMAC(both's key, direction, number, message), message

A stranger who connects and says nothing, or nonsense, keeps nobody waiting. A part that fails is named to all others,
with the reason.
"""

from __future__ import annotations

import hmac
import secrets
import select
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType

from google.protobuf.message import DecodeError

from torpor.errors import PartFailed, failing, in_words
from torpor.sets.keys import KEY
from torpor.sets.line import MAC, Line, proof_of
from torpor.sets.sets_pb2 import All, Hello, Words
from torpor.sets.transport import MOST_PARTS, MOST_WORDS, check_numbers, too_long

_NONCE = 32
_AROUND = 1024
"""The most bytes of a message beside the words in it."""
_STRANGERS = 64
"""The most connections that have not proved anything yet; the oldest is closed if there is another one."""
_UNPROVED = 10.0
"""Seconds that one may take for that."""
_LINGERING = 5.0
"""Seconds to say why this part fails."""


class Star:
    """A transport over TCP. A context manager. Made by `listen` and `Listening.meet` for part 0, else by `join`."""

    def __init__(
        self, part: int, parts: int, address: str, lines: Mapping[int, Line], hosts: Mapping[int, str]
    ) -> None:
        """Take over connections: of part 0 to all others, of others to part 0. Use `listen` or `join`."""
        self._part, self._parts, self._address = part, parts, address
        self._lines = dict(lines)
        self._hosts = dict(hosts)
        self._broken: PartFailed | None = None

    @property
    def part(self) -> int:
        """The number of this part."""
        return self._part

    @property
    def parts(self) -> int:
        """How many there are."""
        return self._parts

    @property
    def address(self) -> str:
        """The address of this host by which it is connected with part 0; that of part 0 with another part."""
        return self._address

    def __enter__(self) -> Star:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections: the other parts fail if they say or await anything."""
        for line in self._lines.values():
            line.close()
        self._broken = self._broken or PartFailed("the connection to the other parts was closed")

    def gather(self, step: str, mine: bytes, seconds: float) -> list[bytes]:
        """See `Transport.gather`."""
        if self._broken:
            raise PartFailed(self._broken.message)
        try:
            if len(mine) > MOST_WORDS:
                raise too_long(len(mine))
            deadline = time.monotonic() + seconds
            return self._of_all(step, mine, deadline) if self._part == 0 else self._ask(step, mine, deadline)
        except PartFailed as error:
            self._broken = error
            self._tell_why(error.message)
            raise
        except BaseException:
            self._broken = PartFailed("the wait for the other parts was interrupted")
            self._tell_why(f"part {self._part} on {socket.gethostname()}: its agent was interrupted")
            raise

    def _tell_why(self, why: str) -> None:
        """Tell the others why the star is broken, if this is its middle, and leave."""
        if self._part == 0:
            deadline = time.monotonic() + _LINGERING
            for line in self._lines.values():
                try:
                    line.say(All(failed=why[: _AROUND // 2]), deadline)
                except OSError:  # it is gone
                    continue
        for line in self._lines.values():
            line.close()

    def _failed(self, part: int, why: str) -> PartFailed:
        return PartFailed(f"part {part} on {self._hosts[part]}: {why}")

    def _of_all(self, step: str, mine: bytes, deadline: float) -> list[bytes]:
        """Collect the words of all, and tell them all."""
        words = {0: mine}
        fresh = True  # what a part says at once was perhaps read together with how it came
        while len(words) < self._parts:
            self._collect(step, words, deadline, fresh=fresh)
            fresh = False
        message = All(step=step, words=[words[part] for part in range(self._parts)])
        for part, line in self._lines.items():
            try:
                line.say(message, deadline)
            except OSError as error:
                raise self._failed(part, _of_line(error)) from error
        return list(message.words)

    def _collect(self, step: str, words: dict[int, bytes], deadline: float, *, fresh: bool) -> None:
        """Wait until a part says something."""
        # Also those that have spoken: that one of them is gone is known at once.
        ready = set(_readable(self._lines, time.monotonic() if fresh else deadline))
        for part, line in self._lines.items():
            if part not in ready and not fresh:
                continue
            try:
                if part in ready:
                    line.fill()
                said = line.receive(Words, MOST_WORDS + _AROUND)
            except EOFError:
                raise self._failed(part, "its agent has ended") from None
            except OSError as error:
                raise self._failed(part, _of_line(error)) from error
            except DecodeError as error:
                raise self._failed(part, f"it says what is not understood: {error}") from None
            if said is None:
                continue
            if part in words or said.step != step or len(said.mine) > MOST_WORDS:
                raise self._failed(part, f"it is at another step: {said.step[:40]!r}, and the others at {step!r}")
            words[part] = said.mine
        if time.monotonic() > deadline:
            silent = next(part for part in range(self._parts) if part not in words)
            raise self._failed(silent, f"it said nothing for too long, at the step {step!r}")

    def _ask(self, step: str, mine: bytes, deadline: float) -> list[bytes]:
        """Tell part 0, and hear the words of all."""
        line = self._lines[0]
        with suppress(OSError):  # it may have said why before it left
            line.say(Words(step=step, mine=mine), deadline)
        while True:
            try:
                reply = line.receive(All, self._parts * (MOST_WORDS + _AROUND) + _AROUND)
                if reply is None:
                    if time.monotonic() > deadline + _LINGERING:  # part 0 names the silent one
                        raise self._failed(0, f"it said nothing for too long, at the step {step!r}")
                    if _readable({0: line}, deadline + _LINGERING):
                        line.fill()
                    continue
            except EOFError:
                raise self._failed(0, "its agent has ended") from None
            except OSError as error:
                raise self._failed(0, _of_line(error)) from error
            except DecodeError as error:
                raise self._failed(0, f"it says what is not understood: {error}") from None
            if reply.failed:
                raise PartFailed(reply.failed if reply.failed.isprintable() else "part 0 failed")
            if reply.step != step or len(reply.words) != self._parts:
                raise self._failed(0, f"it is at another step: {reply.step[:40]!r}, and this part at {step!r}")
            return list(reply.words)


def _of_line(error: OSError) -> str:
    return f"the connection to it is broken: {in_words(error)}"


def _readable(lines: Mapping[int, Line], deadline: float) -> list[int]:
    poll = select.poll()
    numbers = {line.sock.fileno(): part for part, line in lines.items()}
    for number in numbers:
        poll.register(number, select.POLLIN)
    return [numbers[number] for number, _ in poll.poll(max(deadline - time.monotonic(), 0) * 1000)]


class Listening:
    """Part 0, waiting for the others. A context manager: leaving it ends the waiting."""

    def __init__(self, parts: int, key: bytes, host: str, port: int) -> None:
        """Use `listen`."""
        check_numbers(0, parts)
        _check_key(key)
        self._parts, self._key = parts, key
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with failing(PartFailed, f"part 0 cannot listen at {host or 'all addresses'}, port {port}"):
            self._sock = socket.create_server((host, port), family=family, backlog=min(parts + 16, MOST_PARTS))
        self._sock.setblocking(False)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port at which it listens."""
        host, port = self._sock.getsockname()[:2]
        return str(host), int(port)

    def __enter__(self) -> Listening:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def meet(self, seconds: float = 60.0) -> Star:
        """Wait for all other parts.

        Raises:
            PartFailed: some did not come in time, or one came twice.
        """
        deadline = time.monotonic() + seconds
        lines: dict[int, Line] = {}
        strangers: list[Line] = []
        try:
            while len(lines) < self._parts - 1:
                self._meet_some(strangers, lines, deadline)
                if time.monotonic() > deadline and len(lines) < self._parts - 1:
                    missing = [str(part) for part in range(1, self._parts) if part not in lines]
                    more = " and others" if len(missing) > 5 else ""
                    raise PartFailed(
                        f"{self._parts - 1 - len(lines)} parts did not come within {seconds:g} s:"
                        f" {', '.join(missing[:5])}{more}",
                        advice="each must have the same key, and reach the address of part 0",
                    )
        except BaseException:
            for line in lines.values():
                line.close()
            raise
        finally:
            for line in strangers:
                line.close()
        host = next((line.sock.getsockname()[0] for line in lines.values()), self.address[0])
        hosts = {part: line.hello.host for part, line in lines.items() if line.hello}
        return Star(0, self._parts, _plain(host), lines, {0: socket.gethostname(), **hosts})

    def _meet_some(self, strangers: list[Line], lines: dict[int, Line], deadline: float) -> None:
        """Accept connections, and let each prove that it is a part."""
        poll = select.poll()
        for number in (self._sock.fileno(), *(line.sock.fileno() for line in strangers)):
            poll.register(number, select.POLLIN)
        oldest = min((line.since for line in strangers), default=deadline)
        ready = {number for number, _ in poll.poll(max(min(deadline, oldest + _UNPROVED) - time.monotonic(), 0) * 1000)}
        for line in list(strangers):
            late = time.monotonic() > line.since + _UNPROVED
            try:
                if line.sock.fileno() in ready:
                    line.fill()
                    self._advance(line)
            except (EOFError, OSError, DecodeError):
                late = True  # a stranger
            if line.hello is not None and not late:
                strangers.remove(line)
                if line.hello.part in lines:
                    part = line.hello.part
                    line.close()
                    raise PartFailed(f"two agents say that they are part {part} of the set")
                lines[line.hello.part] = line
            elif late:
                strangers.remove(line)
                line.close()
        if self._sock.fileno() in ready:
            try:
                sock, _ = self._sock.accept()
            except OSError:  # it has gone again
                return
            if len(strangers) >= _STRANGERS:
                strangers.pop(0).close()
            strangers.append(Line(sock, middle=True))

    def _advance(self, line: Line) -> None:
        if not line.nonces and (theirs := line.take(_NONCE)) is not None:
            line.nonces = theirs + secrets.token_bytes(_NONCE)
            ours = proof_of(self._key, b"0" + line.nonces)
            line.send(line.nonces[_NONCE:] + ours, time.monotonic() + 1)
        if line.nonces and not line.key and (proof := line.take(MAC)) is not None:
            if not hmac.compare_digest(proof, proof_of(self._key, b"k" + line.nonces)):
                raise DecodeError("a wrong key")
            line.key = proof_of(self._key, b"both" + line.nonces)
        if line.key and (hello := line.receive(Hello, _AROUND)):
            named = hello.host.isprintable() and len(hello.host) < 256
            if hello.parts != self._parts or not 0 < hello.part < self._parts or not named:
                raise DecodeError("a part of another set")
            line.hello = hello


def listen(parts: int, key: bytes, host: str = "", port: int = 0) -> Listening:
    """Begin a star as its part 0.

    Args:
        parts: how many there are.
        key: that all parts have; see `torpor.sets.keys`.
        host: an IP address of this host, which the others reach; empty: all IPv4 addresses.
        port: 0: any that is free; `Listening.address` tells.

    Raises:
        PartFailed: the address or port cannot be had.
    """
    return Listening(parts, key, host, port)


def join(address: tuple[str, int], part: int, parts: int, key: bytes, seconds: float = 60.0) -> Star:
    """Take part in a star, as another part than 0. Tries until part 0 listens.

    Args:
        address: where part 0 listens. Parts on the host of part 0 must use the address that the others use.
        part: the number of this part.
        parts: how many there are.
        key: that all parts have.
        seconds: how long part 0 may take.

    Raises:
        PartFailed: part 0 cannot be reached, or has another key.
    """
    check_numbers(part, parts)
    _check_key(key)
    if part == 0:
        raise ValueError("part 0 listens")
    deadline = time.monotonic() + seconds
    where = f"part 0 at {address[0]}:{address[1]}"
    while True:
        try:
            sock = socket.create_connection(address, max(deadline - time.monotonic(), 0.001))
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise PartFailed(f"{where} cannot be reached: {in_words(error)}") from error
            time.sleep(min(0.05, max(deadline - time.monotonic(), 0)))
    line = Line(sock, middle=False)
    try:
        nonce = secrets.token_bytes(_NONCE)
        line.send(nonce, deadline)
        while (reply := line.take(_NONCE + MAC)) is None:
            if not _readable({0: line}, deadline):
                raise TimeoutError("it says nothing")
            line.fill()
        nonces = nonce + reply[:_NONCE]
        if not hmac.compare_digest(reply[_NONCE:], proof_of(key, b"0" + nonces)):
            raise PartFailed(f"{where} has another key, or is something else")
        line.send(proof_of(key, b"k" + nonces), deadline)
        line.key = proof_of(key, b"both" + nonces)
        line.say(Hello(part=part, parts=parts, host=socket.gethostname()[:255]), deadline)
        host = str(sock.getsockname()[0])
    except EOFError:
        line.close()
        raise PartFailed(f"{where} has closed the connection: it has another key, or is something else") from None
    except OSError as error:
        line.close()
        raise PartFailed(f"{where} does not answer: {in_words(error)}") from error
    except BaseException:
        line.close()
        raise
    return Star(part, parts, _plain(host), {0: line}, {0: address[0]})


def _check_key(key: bytes) -> None:
    if len(key) < KEY:
        raise ValueError(f"a key has {KEY} bytes or more")


def _plain(host: str) -> str:
    """An address without the form that IPv4 has in IPv6."""
    return host.removeprefix("::ffff:")
