"""What programs may do: steps of actors (processes and threads), drawn from a seed.

A step is ``ACTOR VERB NUMBER...``; what the numbers mean is said in player/*.c. Only the life of actors is followed
here, so that nobody is called upon who is dead or stopped; all other errors are as good a result as any.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

ACTORS = 12
FDS = 24
PLACES = 8
SAVE = "save"
"""The step at which the program waits to be saved."""

KINDS: dict[str, dict[str, int]] = {
    "memory": {
        "map": 8, "unmap": 3, "protect": 4, "store": 12, "look": 5, "advise": 8, "move": 4, "heap": 3, "poke": 2,
        "mlock": 2, "mapped": 1, "memfd": 2, "open": 2, "cut": 3, "hole": 2, "pwrite": 3, "force": 2, "read_into": 3,
        "resize_map": 2, "twice": 2, "segment": 1, "msync": 1, "lock_all": 1, "nameless": 1, "map_name": 3,
    },
    "files": {
        "open": 12, "nameless": 2, "memfd": 2, "seal": 1, "write": 8, "pwrite": 3, "read": 6, "seek": 4, "cut": 2,
        "unlink": 4, "rename": 4, "link": 3, "relink": 3, "directory": 5,
        "symlink": 1, "go": 3, "where": 2, "stat": 3, "fstat": 3,
        "dup": 4, "close": 3, "flags": 3, "flock": 4, "range": 4, "holder": 2, "hole": 1, "chmod": 2, "fifo": 3,
        "map_name": 3, "store": 2, "look": 2, "inotify": 2, "news": 2,
        "lease": 1, "list": 2, "exchange": 2, "name_it": 2, "times": 1, "device": 1, "hint": 1, "owner": 1,
    },
    "channels": {
        "pipe": 6, "socketpair": 6, "tcp": 4, "accept": 3, "udp": 2, "unix_listen": 3, "unix_connect": 4, "send": 10,
        "receive": 8, "write": 4, "read": 4, "shut": 3, "set_option": 2, "socket_state": 2, "ready": 4, "capacity": 1,
        "dup": 2, "close": 3, "flags": 2, "fifo": 1, "open": 1, "unix_datagrams": 2, "alone": 2, "urgent": 1,
        "linger": 1, "owner": 1, "splice": 2,
    },
    "ports": {
        "at_port": 10, "connect_to": 12, "accept": 6, "alone": 3, "tcp": 2, "udp": 1, "set_option": 14, "shut": 4,
        "send": 4, "receive": 4, "socket_state": 3, "ready": 4, "dup": 2, "close": 3, "flags": 1,
    },
    "terminals": {
        "terminal": 8, "resize": 2, "mode": 3, "control_terminal": 3, "foreground": 2, "terminal_state": 3,
        "session": 3, "write": 4, "read": 8, "close": 2, "dup": 2, "flags": 1, "ready": 2, "fork": 3,
    },
    "waiting": {
        "event": 4, "count": 4, "epoll": 4, "watch": 10, "happened": 6, "timer": 3, "timer_state": 2, "signals": 2,
        "taken": 2, "inotify": 2, "news": 2, "pidfd": 2, "ready": 3, "pipe": 3, "socketpair": 3, "write": 4, "read": 3,
        "close": 2, "dup": 2, "raise": 2, "open": 1, "unlink": 1, "wait_for": 8, "release": 6, "thread": 4,
    },
    "signals": {
        "action": 8, "mask": 8, "raise": 10, "pending": 3, "fetch": 4, "signal_state": 2, "stack": 2, "interval": 3,
        "posix_timer": 3, "posix_timer_state": 2, "limit": 2, "limits": 1, "control": 6, "controls": 2, "affinity": 1,
        "policy": 1, "expire": 2, "wait_for": 4, "release": 3,
    },
    "own": {
        "ids": 3, "ids_state": 2, "give_up": 2, "filter": 1, "filtered": 1, "persona": 2, "numa": 2, "io_priority": 2,
        "setting": 6, "settings": 2, "root": 1, "control": 3, "controls": 1, "limit": 2, "policy": 1, "exec": 1,
        "fork": 4,
    },
    "ipc": {
        "sem_make": 8, "sem_set": 3, "sem_op": 14, "sem_state": 3, "sem_remove": 1, "queue_make": 6, "queue_send": 10,
        "queue_receive": 6, "queue_state": 3, "queue_remove": 1, "mq_open": 6, "mq_send": 3, "mq_receive": 6,
        "mq_state": 3, "mq_unlink": 2, "unix_listen": 2, "unix_connect": 2, "dup": 1, "close": 1, "fork": 3,
        "wait_for": 1, "release": 1,
    },
    "processes": {
        "fork": 10, "thread": 5, "end": 6, "exec": 3, "wait": 6, "session": 4, "group": 6, "family": 5, "stop": 3,
        "go_on": 3, "alive": 2, "wait_for": 4, "release": 3,
    },
}  # fmt: skip
"""Verbs of each kind, with how often they are drawn."""

PIPE, PAIR, COUNTER, FULL, PART, LOCK = range(6)
WAITS = [PIPE] * 4 + [PAIR] * 2 + [COUNTER] * 2 + [FULL, PART] + [LOCK] * 2 + [None] * 9
"""By what an actor waits for (player.h): at what, which one alone may."""
FIRST_MOMENT = 16
"""From which on a wait ends by itself."""

MAKES = {
    "open": (0,), "nameless": (0,), "memfd": (0,), "device": (0,), "pipe": (0, 1), "socketpair": (0, 1), "tcp": (0, 1),
    "udp": (0, 1), "unix_datagrams": (0, 1), "alone": (0,), "unix_listen": (0,), "unix_connect": (0,), "event": (0,),
    "epoll": (0,), "timer": (0,), "signals": (0,), "inotify": (0,), "pidfd": (0,), "terminal": (0, 1), "accept": (1,),
    "dup": (1,), "mq_open": (0,), "at_port": (0, 1), "connect_to": (1,),
}  # fmt: skip
"""Verbs that make descriptors: which of their numbers say where to."""

USES = {
    "seal": (0,), "write": (0,), "pwrite": (0,), "read": (0,), "seek": (0,), "cut": (0,), "fstat": (0,), "dup": (0,),
    "flags": (0,), "flock": (0,), "range": (0,), "holder": (0,), "hole": (0,), "chmod": (0,), "lease": (0,),
    "name_it": (0,), "times": (0,), "hint": (0,), "owner": (0,), "splice": (0, 1), "accept": (0,), "send": (0, 3),
    "receive": (0,), "urgent": (0,), "linger": (0,), "shut": (0,), "set_option": (0,), "socket_state": (0,),
    "ready": (0,), "capacity": (0,), "count": (0,), "watch": (0, 1), "happened": (0,), "timer_state": (0,),
    "connect_to": (0,), "taken": (0,), "news": (0,), "resize": (0,), "mode": (0,), "control_terminal": (0,),
    "foreground": (0,), "terminal_state": (0,), "read_into": (2,), "map": (2,), "mq_send": (0,), "mq_receive": (0,),
    "mq_state": (0,),
}  # fmt: skip
"""Verbs that use descriptors: which of their numbers say which."""

MAPS = ("map", "map_name", "segment")
_OF_BOTH = ("map_name", "store", "look")
"""Verbs of files that are also of memory, with its numbers."""

FITS = {
    "happened": ("epoll",), "timer_state": ("timer",), "taken": ("signals",), "news": ("inotify",),
    "count": ("event",), "accept": ("unix_listen", "tcp", "at_port"), "connect_to": ("at_port",),
    "resize": ("terminal",), "mode": ("terminal",), "control_terminal": ("terminal",), "foreground": ("terminal",),
    "terminal_state": ("terminal",),
    "seal": ("memfd",), "name_it": ("nameless",), "urgent": ("tcp",), "capacity": ("pipe",),
    "splice": ("pipe", "open"), "map": ("open", "memfd", "nameless", "device"),
    "read_into": ("open", "memfd", "nameless"), "mq_send": ("mq_open",), "mq_receive": ("mq_open",),
    "mq_state": ("mq_open",),
}  # fmt: skip
"""Verbs for descriptors of some kinds only: the verbs that make those."""

LAST = ["family", "signal_state", "controls", "limits", "pending", "where", "alive", "policy", "ids_state", "settings"]
"""What every process tells of itself in the end; besides its descriptors and its memory."""


@dataclass(frozen=True)
class Step:
    """One turn."""

    actor: int
    verb: str
    numbers: tuple[int, ...] = ()

    def __str__(self) -> str:
        return " ".join(map(str, (self.actor, self.verb, *self.numbers)))

    @classmethod
    def read(cls, line: str) -> Step:
        """A step as `str` writes it."""
        actor, verb, *numbers = line.split()
        return cls(int(actor), verb, tuple(map(int, numbers)))


@dataclass
class Actors:
    """Who lives: the process of each actor, and which processes stand still."""

    process: dict[int, int] = field(default_factory=lambda: {0: 0})
    stopped: set[int] = field(default_factory=set)
    waiting: dict[int, int | None] = field(default_factory=dict)
    """Who is in a call that lasts, and what it waits at."""
    used: int = 1
    made: dict[int, str] = field(default_factory=dict)
    """The verbs that made descriptors, by their numbers: some process may have them."""
    mapped: set[int] = field(default_factory=set)
    """Places at which some process may have memory."""

    def able(self) -> list[int]:
        """Those who can take a turn."""
        return [
            actor
            for actor, process in self.process.items()
            if process not in self.stopped and actor not in self.waiting
        ]

    def allows(self, step: Step) -> bool:
        """Whether it can be taken, and leaves somebody to go on."""
        if step.actor not in self.able():
            return False
        own, first = self.process[step.actor], step.numbers[0] if step.numbers else 0
        if step.verb in ("fork", "thread"):
            return first not in self.process and self.used <= first < ACTORS
        if step.verb == "end":
            return own != 0
        if step.verb == "wait_for":
            return step.actor != 0 and (WAITS[first] is None or WAITS[first] not in self.waiting.values())
        if step.verb == "release":
            return first in self.waiting and self.process[first] not in self.stopped
        if step.verb == "exec":
            return step.actor == own
        if step.verb in ("stop", "go_on"):
            return first in self.process and self.process[first] == first != own and first != 0
        return True

    def take(self, step: Step) -> None:
        """Follow what a step does to those who live."""
        own, first = self.process[step.actor], step.numbers[0] if step.numbers else 0
        for number in MAKES.get(step.verb, ()):
            self.made[step.numbers[number] % FDS] = step.verb
        if step.verb in MAPS:
            self.mapped.add(first)
        if step.verb in ("fork", "thread"):
            self.process[first] = first if step.verb == "fork" else own
            self.used = first + 1
        elif step.verb == "end":
            self.process = {actor: process for actor, process in self.process.items() if process != own}
        elif step.verb == "exec":
            self.process = {a: process for a, process in self.process.items() if process != own or a == own}
        elif step.verb == "wait_for":
            self.waiting[step.actor] = WAITS[first]
        elif step.verb == "release":
            del self.waiting[first]
        elif step.verb == "stop":
            self.stopped.add(first)
        elif step.verb == "go_on":
            self.stopped.discard(first)
        self.waiting = {actor: at for actor, at in self.waiting.items() if actor in self.process}

    def at_last(self) -> list[Step]:
        """What the first actor does so that all can go on."""
        steps = [Step(0, "go_on", (process,)) for process in sorted(self.stopped)]
        return steps + [Step(0, "release", (actor,)) for actor in sorted(self.waiting)]


def sensible(steps: Iterable[Step]) -> list[Step]:
    """The steps that can be taken, in their order, and before the end all that stand still go on."""
    actors = Actors()
    kept = []
    for step in steps:
        if actors.allows(step):
            actors.take(step)
            kept.append(step)
    return kept + actors.at_last()


def generate(seed: int) -> list[Step]:
    """A program: some of the kinds of verbs, mixed, with one to three saves, and all looked at in the end."""
    chance = random.Random(seed)
    kinds = [*chance.sample(sorted(KINDS), chance.randint(1, 3)), "processes"]
    verbs: dict[str, int] = {}
    for kind in kinds:
        for verb, weight in KINDS[kind].items():
            verbs[verb] = max(verbs.get(verb, 0), weight)
    if "processes" not in kinds[:-1]:
        verbs |= {"fork": 2, "thread": 1, "end": 1, "stop": 0, "session": 0, "group": 0}
    length, saves = chance.randint(10, 90), chance.choice([1, 1, 1, 2, 3])
    at = set(chance.sample(range(length // 3, length), min(saves, length // 3)))
    actors = Actors()
    steps: list[Step] = []
    for number in range(length):
        if number in at:
            steps.append(Step(0, SAVE, (len([s for s in steps if s.verb == SAVE]),)))
        step = _draw(chance, verbs, actors)
        if actors.allows(step):
            actors.take(step)
            steps.append(step)
    return sensible([*steps, *_look_round(actors), *(_OF_IPC if "ipc" in kinds else [])])


def _draw(chance: random.Random, verbs: dict[str, int], actors: Actors) -> Step:
    verb = chance.choices(list(verbs), list(verbs.values()))[0]
    # Few descriptors and places, so that steps meet.
    few = chance.choice([3, 8, FDS])
    numbers = [chance.randrange(few), chance.randrange(few), *(chance.randrange(1 << 16) for _ in range(3))]
    if verb in KINDS["memory"] and (verb not in KINDS["files"] or verb in _OF_BOTH):
        numbers = [chance.randrange(3), chance.randrange(64), *(chance.randrange(1 << 10) for _ in range(3))]
        if actors.mapped and verb not in MAPS:
            numbers[0] = chance.choice(sorted(actors.mapped))
    if verb in ("map", "move"):
        numbers[1], numbers[2] = chance.randrange(6 if verb == "map" else 3), chance.randrange(few)
    if verb in ("action", "mask", "raise", "fetch", "control", "limit"):
        numbers[0], numbers[1] = chance.randrange(12), chance.randrange(12)
    # Most are to do something.
    for number in USES.get(verb, ()):
        alike = [fd for fd, maker in actors.made.items() if maker in FITS.get(verb, MAKES)] or list(actors.made)
        if alike and chance.random() < 0.8:
            numbers[number] = chance.choice(alike)
    if verb in ("fork", "thread"):
        numbers = [actors.used]
    if verb == "wait_for":
        numbers = [chance.randrange(len(WAITS))]
    if verb == "release":
        numbers = [chance.choice([*actors.waiting, 0])]
    if verb == "force":
        numbers[3] = chance.randrange(actors.used)
    if verb in ("stop", "go_on", "wait", "group"):
        numbers[0], numbers[1] = chance.randrange(actors.used), chance.randrange(actors.used)
    return Step(chance.choice(actors.able()), verb, tuple(numbers))


_OF_IPC = [
    Step(0, verb, (slot, 0)) for slot in range(3) for verb in ("sem_state", "queue_state", *["queue_receive"] * 10)
]
"""What is left in semaphores and queues in the end."""


def _look_round(actors: Actors) -> list[Step]:
    steps = actors.at_last()
    for actor, process in actors.process.items():
        steps += [Step(actor, verb) for verb in LAST]
        if actor != process:
            continue  # a thread sees the same
        steps += [Step(actor, "look", (place, 0, 63)) for place in range(3)]
        for fd in range(FDS if actor == 0 else 6):
            steps += [Step(actor, verb, (fd, 4000)) for verb in ("fstat", "ready", "socket_state", "read")]
    return steps


def write(steps: Sequence[Step]) -> str:
    """A script for the player."""
    return "".join(f"{step}\n" for step in steps)
