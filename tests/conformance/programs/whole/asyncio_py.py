"""An event loop: its epoll set, its wake-up socket pair, sleeping tasks, a server with a client, a subprocess."""

import asyncio
import signal

from ready import GO, expect, judge, ready, same


async def story() -> None:
    loop = asyncio.get_running_loop()
    go = asyncio.Event()
    loop.add_signal_handler(GO, go.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {GO})

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line.upper())
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"before\n")
    same(await reader.readline(), b"BEFORE\n", "the echo before")
    writer.write(b"half a ")
    await writer.drain()
    begun = loop.time()
    naps = [asyncio.create_task(asyncio.sleep(0.3 + number / 100, number)) for number in range(20)]
    forever = asyncio.create_task(asyncio.sleep(3600))
    blocked = asyncio.create_task(asyncio.to_thread(lambda: 5))
    same(await blocked, 5, "a thread")
    cat = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    cat.stdin.write(b"awake\n")
    same(await cat.stdout.readline(), b"awake\n", "the subprocess before")
    cat.stdin.write(b"into the cat\n")
    await cat.stdin.drain()
    ready()
    await go.wait()

    writer.write(b"line\n")
    same(await reader.readline(), b"HALF A LINE\n", "the echo of a line that was begun before")
    same(await asyncio.gather(*naps), list(range(20)), "naps")
    expect(loop.time() - begun >= 0.49, "the naps were too short")
    expect(not forever.done(), "a long sleep ended")
    forever.cancel()
    same(await cat.stdout.readline(), b"into the cat\n", "what the subprocess had read")
    cat.stdin.close()
    same(await cat.wait(), 0, "the subprocess's exit status")
    another, other = await asyncio.open_connection(*server.sockets[0].getsockname())
    other.write(b"new\n")
    same(await another.readline(), b"NEW\n", "a new connection's echo")
    for one in (writer, other):
        one.close()
        await one.wait_closed()
    server.close()


judge(lambda: asyncio.run(story()))
