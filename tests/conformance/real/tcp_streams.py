"""asyncio, or uvloop when asked for: a server, its clients in another process, and TCP that is never silent."""

import asyncio
import hashlib
import os
import random
import sys

from cycles import digest, repeat

CLIENTS, MESSAGES = 6, 40


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while header := await reader.read(4):
        size = int.from_bytes(header + await reader.readexactly(4 - len(header)), "big")
        body = await reader.readexactly(size)
        writer.write(hashlib.sha256(body).digest() + body[: size // 2])
        await writer.drain()
    writer.close()


async def talk(port: int, seed: int) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    chance = random.Random(seed)
    heard = hashlib.sha256()
    for _ in range(MESSAGES):
        body = chance.randbytes(chance.randrange(1, 60_000))
        writer.write(len(body).to_bytes(4, "big") + body)
        if chance.random() < 0.3:
            await asyncio.sleep(0.001)
        answer = await reader.readexactly(32 + len(body) // 2)
        assert answer[:32] == hashlib.sha256(body).digest()
        heard.update(answer)
    writer.close()
    await writer.wait_closed()
    return heard.hexdigest()


async def all_clients(port: int) -> str:
    return digest(await asyncio.gather(*(talk(port, seed) for seed in range(CLIENTS))))


async def server(pipe: int) -> None:
    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    os.write(pipe, b"%d\n" % listening.sockets[0].getsockname()[1])
    await listening.serve_forever()


def main() -> None:
    if sys.argv[1:] == ["uvloop"]:
        os.environ["UV_USE_IO_URING"] = "0"
        import uvloop  # noqa: PLC0415

        uvloop.install()
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        asyncio.run(server(tell))
    os.close(tell)
    with open(told) as answer:
        port = int(answer.readline())
        loop = asyncio.new_event_loop()
        repeat(lambda: loop.run_until_complete(all_clients(port)))
    os.kill(child, 9)
    os.waitpid(child, 0)


main()
