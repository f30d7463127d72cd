"""Plain Python threads: sleeps, locks, conditions, events, queues with time limits, a pool, thread-local data."""

import concurrent.futures
import queue
import threading
import time

from ready import expect, judge, ready_and_wait, same


def main() -> None:
    results: dict[str, object] = {}
    lock, recursive = threading.Lock(), threading.RLock()
    event, condition = threading.Event(), threading.Condition()
    barrier, semaphore = threading.Barrier(2), threading.Semaphore(0)
    jobs: queue.Queue[int] = queue.Queue()
    local = threading.local()
    stop = threading.Event()
    ticks = []

    def sleeper() -> None:
        begun = time.monotonic()
        time.sleep(0.6)
        results["slept"] = time.monotonic() - begun >= 0.6

    def ticker() -> None:
        local.count = 0
        while not stop.is_set():
            time.sleep(0.001)
            local.count += 1
            ticks.append(local.count)

    def locked() -> None:
        with lock:
            results["lock"] = True

    def conditional() -> None:
        with condition:
            results["condition"] = condition.wait_for(lambda: "word" in results, timeout=100)

    threads = [
        threading.Thread(target=work, name=f"work {number}")
        for number, work in enumerate(
            [
                sleeper,
                ticker,
                locked,
                conditional,
                lambda: results.update(event=event.wait(100)),
                lambda: results.update(queue=jobs.get(timeout=100)),
                lambda: results.update(barrier=barrier.wait(100) in (0, 1)),
                lambda: results.update(semaphore=semaphore.acquire(timeout=100)),
                lambda: results.update(too_late=threading.Event().wait(0.5)),
            ]
        )
    ]
    lock.acquire()
    recursive.acquire()
    recursive.acquire()
    for thread in threads:
        thread.start()
    pool = concurrent.futures.ThreadPoolExecutor(4)
    futures = [pool.submit(lambda k: (event.wait(100), k * k)[1], k) for k in range(8)]
    while not ticks:
        time.sleep(0.001)
    generator = (k for k in range(10))
    next(generator)
    ready_and_wait()

    same(next(generator), 1, "a generator that was begun")
    so_far = len(ticks)
    expect(lock.locked(), "the lock is free")
    lock.release()
    event.set()
    jobs.put(11)
    semaphore.release()
    barrier.wait(100)
    with condition:
        results["word"] = True
        condition.notify_all()
    same([future.result(100) for future in futures], [k * k for k in range(8)], "results of the pool")
    pool.shutdown()
    recursive.release()
    recursive.release()
    deadline = time.monotonic() + 100
    while len(ticks) < so_far + 20 and time.monotonic() < deadline:
        time.sleep(0.001)
    expect(len(ticks) >= so_far + 20, "the ticking thread is still")
    stop.set()
    for thread in threads:
        thread.join(100)
        expect(not thread.is_alive(), f"{thread.name} does not end")
    same(ticks, list(range(1, len(ticks) + 1)), "the counts of a thread-local counter")
    wanted = dict.fromkeys(("slept", "lock", "condition", "event", "barrier", "semaphore", "word"), True)
    same(results, {**wanted, "queue": 11, "too_late": False}, "results")


judge(main)
