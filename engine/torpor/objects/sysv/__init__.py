"""System V objects: shared memory segments, semaphore sets and message queues."""
