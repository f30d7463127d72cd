"""A job as people run them: numpy, worker processes, a log, a buffer that is not written yet, and a final answer.

    slurm_app.py FOLDER STEPS [SECONDS]

It computes for STEPS steps, and tells the same whether it is disturbed or not. With SECONDS a step takes at least that
long, and it does not end, until there is a file FOLDER/finish: what happens to it meanwhile happens in the middle.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

NAMESPACES = ("user", "pid", "mnt")
LAST = 5
"""Steps that it does only when it may finish."""


def work(number: int, line: Connection) -> None:
    """A worker: it keeps a state of its own between two pieces of work."""
    generator = np.random.default_rng(number)
    memory = np.zeros(4096)
    while (step := line.recv()) is not None:
        memory = np.roll(memory + generator.standard_normal(4096), step)
        line.send(float(memory @ memory))


def main(folder: Path, steps: int, seconds: float) -> None:
    """Compute, log, and write the answer."""
    finish = folder / "finish"
    (folder / "namespaces").write_text("".join(f"{os.readlink(f'/proc/self/ns/{one}')}\n" for one in NAMESPACES))
    context = multiprocessing.get_context("fork")
    lines, workers = [], []
    for number in range(2):
        ours, theirs = context.Pipe()
        worker = context.Process(target=work, args=(number, theirs))
        worker.start()
        lines.append(ours)
        workers.append(worker)
    pids = [os.getpid(), *(worker.pid for worker in workers)]
    state = np.eye(64)
    random = np.random.default_rng(7)
    with open(folder / "log", "a", buffering=1) as log, open(folder / "buffered", "w") as buffered:
        for step in range(steps):
            until = time.monotonic() + seconds
            for line in lines:
                line.send(step)
            state = np.tanh(state @ random.standard_normal((64, 64)))
            parts = [line.recv() for line in lines]
            assert [os.getpid(), *(worker.pid for worker in workers)] == pids
            log.write(f"{step} {state.sum():.17g} {parts}\n")
            buffered.write(f"{step}\n")
            print(f"step {step}", flush=True)
            while seconds and not finish.exists() and (step == steps - LAST or time.monotonic() < until):
                time.sleep(0.02)
    for line, worker in zip(lines, workers, strict=True):
        line.send(None)
        worker.join()
    (folder / "answer").write_text(f"{state.sum():.17g} {random.standard_normal():.17g}\n")
    sys.exit(7)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) if sys.argv[3:] else 0)
