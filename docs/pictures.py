"""Draw the pictures of the pages: `python docs/pictures.py`. The figures are those of the pages' own tables."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

DOCS = Path(__file__).parent
INK, PALE, WARM, COOL = "#24292f", "#eef1f4", "#f0b37e", "#a9c8e8"
COLOURS = ("#b5532a", "#2f6f9f", "#3d8056", "#7d5ba6")


def picture(width: int, height: int, parts: Iterator[str]) -> str:
    """An SVG document on white, which is readable on a dark page, too."""
    font = "font-family='system-ui, sans-serif' font-size='13'"
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' {font} fill='{INK}'>"
    )
    return "\n".join([head, f"<rect width='{width}' height='{height}' fill='#fff'/>", *parts, "</svg>\n"])


def text(x: float, y: float, words: str, more: str = "text-anchor='middle'") -> str:
    """A line of text; by default `x` is its middle."""
    return f"<text x='{x:g}' y='{y:g}' {more}>{escape(words)}</text>"


def box(x: float, y: float, width: float, height: float, colour: str) -> str:
    """A box."""
    return f"<rect x='{x:g}' y='{y:g}' width='{width:g}' height='{height:g}' rx='5' fill='{colour}'/>"


# --- the two stories ---------------------------------------------------------------------------------------

STEP = 128
Story = tuple[Sequence[tuple[str, str, str]], Sequence[tuple[int, str, str]]]
"""Steps with two lines each, and what the job does meanwhile: for how many steps, in words, in a colour."""

CHECKPOINT: Story = (
    [
        ("preflight", "what cannot be kept", "is refused by name"),
        ("freeze", "every thread", "is stopped"),
        ("grab", "registers, files;", "memory is forked"),
        ("thaw", "all threads", "run on"),
        ("describe", "the image:", "what there was"),
        ("write", "pages that are", "new to the store"),
        ("publish", "one rename, and", "the snapshot is there"),
    ],
    [(1, "the job runs", COOL), (2, "it stands still: milliseconds", WARM), (4, "it runs on", COOL)],
)
RESTORE: Story = (
    [
        ("validate", "all obstacles are", "reported at once"),
        ("open", "files, pipes and", "sockets, once each"),
        ("plan", "the system calls", "of each process"),
        ("build", "blank processes", "run their lists"),
        ("verify", "what was built is", "what the image says"),
        ("release", "all threads", "run"),
    ],
    [(3, "nothing is started", PALE), (2, "it is built; a failure leaves nothing", WARM), (1, "the job runs on", COOL)],
)


def story(steps: Sequence[tuple[str, str, str]], meanwhile: Sequence[tuple[int, str, str]]) -> str:
    """A row of steps above a bar for the job."""

    def parts() -> Iterator[str]:
        for number, (name, first, second) in enumerate(steps):
            x = 10 + STEP * number
            yield box(x, 10, STEP - 8, 74, PALE)
            yield text(x + STEP / 2 - 4, 32, name, "text-anchor='middle' font-weight='bold' font-size='15'")
            yield text(x + STEP / 2 - 4, 54, first, "text-anchor='middle' font-size='11'")
            yield text(x + STEP / 2 - 4, 69, second, "text-anchor='middle' font-size='11'")
        at = 10
        for count, words, colour in meanwhile:
            yield box(at, 96, STEP * count - 8, 26, colour)
            yield text(at + STEP * count / 2 - 4, 114, words)
            at += STEP * count

    return picture(12 + STEP * len(steps), 132, parts())


# --- what it costs -----------------------------------------------------------------------------------------

LEFT, TOP, RIGHT, BOTTOM = 62, 34, 450, 270
SHORTEST, LONGEST = 0.005, 20.0
"""Seconds: the ends of the scale."""


def rows() -> tuple[list[str], list[tuple[float, list[float]]]]:
    """The first table of costs.md: the headings, and for each amount of memory, in MiB, the seconds."""
    lines = [line for line in (DOCS / "costs.md").read_text().splitlines() if line.startswith("|")]
    headings = [cell.strip() for cell in lines[0].split("|")[2:-1]]
    found = []
    for line in lines[2:]:
        first, *rest = [cell.strip() for cell in line.split("|")[1:-1]]
        if (memory := re.fullmatch(r"(\d+) ([MG])iB", first)) is None:
            break
        found.append((int(memory[1]) * (1024 if memory[2] == "G" else 1), [seconds(cell) for cell in rest]))
    return headings, found


def seconds(cell: str) -> float:
    """A time of a table."""
    number, unit = cell.split()
    return float(number) * {"ms": 1e-3, "s": 1.0}[unit]


def costs() -> str:
    """The seconds that grow with the memory, both on a logarithmic scale."""
    headings, found = rows()
    first, last = math.log(found[0][0]), math.log(found[-1][0])

    def x(memory: float) -> float:
        return round(LEFT + 12 + (RIGHT - LEFT - 24) * (math.log(memory) - first) / (last - first), 1)

    def y(value: float) -> float:
        span = math.log(LONGEST / SHORTEST)
        return round(BOTTOM - (BOTTOM - TOP) * math.log(value / SHORTEST) / span, 1)

    def parts() -> Iterator[str]:
        yield text(LEFT, 20, "Seconds, by the memory of a process", "font-weight='bold'")
        for mark, words in ((0.01, "10 ms"), (0.1, "100 ms"), (1.0, "1 s"), (10.0, "10 s")):
            yield f"<path d='M{LEFT} {y(mark)}H{RIGHT}' stroke='{PALE}'/>"
            yield text(LEFT - 8, y(mark) + 4, words, "text-anchor='end'")
        for memory, _ in found:
            yield text(x(memory), BOTTOM + 20, f"{memory // 1024} GiB" if memory >= 1024 else f"{memory} MiB")
        for number, (heading, colour) in enumerate(zip(headings, COLOURS, strict=True)):
            points = [(x(memory), y(values[number])) for memory, values in found]
            line = " ".join(f"{across},{down}" for across, down in points)
            yield f"<polyline points='{line}' fill='none' stroke='{colour}' stroke-width='2.5'/>"
            yield from (f"<circle cx='{across}' cy='{down}' r='3.5' fill='{colour}'/>" for across, down in points)
            yield text(RIGHT + 6, points[-1][1] + 4, heading, f"fill='{colour}'")

    return picture(640, 300, parts())


def pictures() -> dict[str, str]:
    """Every picture that is drawn, by its file name."""
    return {"checkpoint.svg": story(*CHECKPOINT), "restore.svg": story(*RESTORE), "costs.svg": costs()}


if __name__ == "__main__":
    for name, drawn in pictures().items():
        (DOCS / "pictures" / name).write_text(drawn)
