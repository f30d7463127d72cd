"""Event counters: values, the semaphore kind, blocking, shared with a child."""

import os
import threading

from ready import expect, judge, ready_and_wait, same


def blocks(fd: int) -> bool:
    os.set_blocking(fd, False)
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        return True
    return False


def main() -> None:
    counter = os.eventfd(3)
    os.eventfd_write(counter, 39)
    vast = os.eventfd(0, os.EFD_NONBLOCK)
    os.eventfd_write(vast, 2**64 - 2)
    semaphore = os.eventfd(2, os.EFD_SEMAPHORE | os.EFD_CLOEXEC)
    empty = os.eventfd(0)
    shared, answer = os.eventfd(0), os.eventfd(0)
    child = os.fork()
    if child == 0:
        os.eventfd_write(answer, os.eventfd_read(shared) + 1)
        os._exit(0)
    got: list[int] = []
    waiting = os.eventfd(0)
    waiter = threading.Thread(target=lambda: got.append(os.eventfd_read(waiting)))
    waiter.start()
    ready_and_wait()

    same(os.eventfd_read(counter), 42, "counter")
    expect(blocks(counter), "a counter that was read is not empty")
    try:
        os.eventfd_write(vast, 1)
        expect(False, "a full counter took more")
    except BlockingIOError:
        pass
    same(os.eventfd_read(vast), 2**64 - 2, "a full counter")
    same((os.eventfd_read(semaphore), os.eventfd_read(semaphore)), (1, 1), "semaphore")
    expect(blocks(semaphore), "the semaphore is not used up")
    expect(blocks(empty), "an empty counter is not")
    os.eventfd_write(shared, 6)
    same(os.eventfd_read(answer), 7, "the child's answer")
    same(os.waitpid(child, 0), (child, 0), "the child")
    os.eventfd_write(waiting, 8)
    waiter.join()
    same(got, [8], "what a waiting thread got")


judge(main)
