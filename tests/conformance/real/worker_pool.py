"""multiprocessing: a Pool, a Manager's dictionary and lock, a Queue and shared memory at the same time."""

import hashlib
import multiprocessing as mp
from multiprocessing.shared_memory import SharedMemory
from typing import Any

from cycles import digest, repeat

SLOTS = 12


def work(task: tuple[int, str, Any, Any]) -> str:
    number, name, counts, lock = task
    chain = b"%d" % number
    for _ in range(3000):
        chain = hashlib.sha256(chain).digest()
    block = SharedMemory(name)
    block.buf[32 * number : 32 * number + 32] = chain
    block.close()
    with lock:
        counts["done"] = counts.get("done", 0) + 1
    return chain.hex()


def echo(requests: Any, answers: Any) -> None:
    for word in iter(requests.get, None):
        answers.put(word[::-1])


def main() -> None:
    context = mp.get_context("fork")
    requests: Any = context.Queue()
    answers: Any = context.Queue()
    other = context.Process(target=echo, args=(requests, answers))
    other.start()
    with context.Manager() as manager, context.Pool(3) as pool:
        lock = manager.Lock()
        block = SharedMemory(create=True, size=32 * SLOTS)

        def cycle() -> str:
            counts = manager.dict()
            block.buf[:] = bytes(len(block.buf))
            for number in range(20):
                requests.put("x" * number * 1000 + str(number))
            results = pool.map(work, [(number, block.name, counts, lock) for number in range(SLOTS)], chunksize=1)
            echoed = [answers.get() for _ in range(20)]
            return digest(results, bytes(block.buf[: 32 * SLOTS]), dict(counts), echoed)

        repeat(cycle)
        block.close()
        block.unlink()
        pool.close()
        pool.join()
    requests.put(None)
    other.join()
    assert other.exitcode == 0


if __name__ == "__main__":
    main()
