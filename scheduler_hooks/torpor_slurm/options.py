"""Read options as Slurm's commands do: long ones with a value after ``=`` or in the next word, short ones combined."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Given:
    """An option that a command line gives."""

    begin: int
    end: int
    """Its position in the command line: words[begin:end]."""
    name: str
    """Its long name, or the letter if it has none; ``--`` for the end of all options."""
    value: str


@dataclass(frozen=True)
class Grammar:
    """The options that a command knows."""

    without_value: frozenset[str]
    """Long options that take no value, or one only after ``=``."""
    short_without_value: frozenset[str]
    long: Mapping[str, str]
    """Long names of short options."""
    in_full: Mapping[str, str] = field(default_factory=dict)
    """Abbreviated long names, with the full ones: a command accepts an abbreviation that fits one option only."""

    def walk(self, words: Sequence[str]) -> Iterator[Given]:
        """The options at the beginning of a command line."""
        at = 0
        while at < len(words) and words[at].startswith("-") and words[at] != "-":
            begin, word = at, words[at]
            at += 1
            if word == "--":
                yield Given(begin, at, "--", "")
                return
            if word.startswith("--"):
                name, equals, value = word[2:].partition("=")
                name = self.in_full.get(name, name)
                if not equals and name not in self.without_value and at < len(words):
                    value, at = words[at], at + 1
            else:
                letters = re.match(f"-([{''.join(self.short_without_value)}]*)(.?)(.*)", word, re.DOTALL)
                assert letters
                flags, name, value = letters.groups()
                number = name + value if name.isdigit() else ""  # -K1: the value of an option that needs none
                for place, letter in enumerate(flags, 1):
                    yield Given(begin, at, self.long.get(letter, letter), number if place == len(flags) else "")
                if number or not name:
                    continue
                if not value and at < len(words):
                    value, at = words[at], at + 1
            yield Given(begin, at, self.long.get(name, name), value)

    def read(self, words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
        """Return the options by long name (the last value of each), and the words that follow the options."""
        found: dict[str, str] = {}
        rest = 0
        for option in self.walk(words):
            found[option.name] = option.value
            rest = option.end
        return found, list(words[rest:])

    def without(self, words: Sequence[str], *names: str) -> list[str]:
        """The words without some options."""
        kept = list(words)
        for option in reversed(list(self.walk(words))):
            if option.name in names:
                del kept[option.begin : option.end]
        return kept
