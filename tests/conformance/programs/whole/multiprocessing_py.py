"""multiprocessing's objects: locks and semaphores in files that have no name, queues, pipes, values, a pool."""

import multiprocessing
import os
import signal
import threading
from multiprocessing import resource_tracker, shared_memory

from ready import GO, await_go, expect, judge, ready, same

context = multiprocessing.get_context("fork")


def worker(lock, semaphore, jobs, results, value, array, name) -> None:
    block = shared_memory.SharedMemory(name)
    results.put("up")
    while (job := jobs.get()) is not None:
        semaphore.acquire()
        with lock, value.get_lock():
            value.value += job
            array[job % len(array)] += 1
            block.buf[job] = 1
        results.put((os.getpid(), job))
    block.close()


def square(number: int) -> int:
    return number * number


def main() -> None:
    lock, semaphore = context.Lock(), context.Semaphore(0)
    jobs, results = context.Queue(), context.Queue()
    value, array = context.Value("q", 0), context.Array("i", 10)
    here, there = context.Pipe()
    block = shared_memory.SharedMemory(create=True, size=4096)
    block.buf[100:105] = b"block"
    workers = [
        context.Process(target=worker, args=(lock, semaphore, jobs, results, value, array, block.name))
        for _ in range(3)
    ]
    for one in workers:
        one.start()
    same([results.get(timeout=100) for _ in workers], ["up"] * 3, "workers")
    pool = context.Pool(2)
    same(pool.map(square, range(5)), [0, 1, 4, 9, 16], "the pool before")
    here.send({"a": [1, 2, 3]})
    lock.acquire()
    for job in range(1, 31):
        jobs.put(job)
    tracker = resource_tracker._resource_tracker._pid  # begun by the first shared block; it reads when it is ready
    ready((threading.get_native_id(), 128), (tracker, 0))
    await_go()

    expect(not lock.acquire(block=False), "the lock is free")
    lock.release()
    for _ in range(30):
        semaphore.release()
    done = [results.get(timeout=100) for _ in range(30)]
    same(sorted(job for _, job in done), list(range(1, 31)), "jobs done")
    expect({pid for pid, _ in done} <= {one.pid for one in workers}, "a stranger did a job")
    same(value.value, sum(range(1, 31)), "the shared value")
    same(list(array), [3] * 10, "the shared array")
    same(bytes(block.buf[1:31]), b"\1" * 30, "the shared block, written by the workers")
    same(bytes(block.buf[100:105]), b"block", "the shared block")
    same(there.recv(), {"a": [1, 2, 3]}, "what was in the pipe")
    same(pool.map(square, range(100)), [k * k for k in range(100)], "the pool afterwards")
    for _ in workers:
        jobs.put(None)
    for one in workers:
        one.join(100)
        same(one.exitcode, 0, "a worker's exit status")
    pool.close()
    pool.join()
    block.close()
    block.unlink()
    jobs.close()
    results.close()
    jobs.join_thread()
    results.join_thread()


signal.pthread_sigmask(signal.SIG_BLOCK, {GO})
judge(main)
