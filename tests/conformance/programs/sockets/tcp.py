"""TCP: listeners come back on their ports, connections within the tree go on with what was under way, and one
to the outside is reset by its peer."""

import json
import os
import select
import socket
import threading

from ready import HERE, expect, judge, ready_and_wait, same

BULK = bytes(number * 11 % 253 for number in range(30_000))


def connected(listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    client = socket.create_connection(listener.getsockname()[:2])
    return client, listener.accept()[0]


def options(sock: socket.socket) -> dict[str, object]:
    read = sock.getsockopt
    return {
        "nodelay": read(socket.IPPROTO_TCP, socket.TCP_NODELAY),
        "keepalive": read(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        "keepidle": read(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
        "reuseaddr": read(socket.SOL_SOCKET, socket.SO_REUSEADDR),
        "linger": read(socket.SOL_SOCKET, socket.SO_LINGER, 8),
        "blocking": sock.getblocking() and os.get_blocking(sock.fileno()),
        "inheritable": sock.get_inheritable(),
        "address": sock.getsockname(),
    }


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=7)
    six = socket.create_server(("::1", 0), family=socket.AF_INET6) if socket.has_dualstack_ipv6() else None
    everywhere = socket.create_server(("", 0), reuse_port=True)
    everywhere.setblocking(False)
    client, server = connected(listener)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)
    client.set_inheritable(True)
    client.sendall(BULK)
    server.sendall(b"the other way")
    itself = socket.socket()
    itself.bind(("127.0.0.1", 0))
    itself.connect(itself.getsockname())
    itself.send(b"to itself")
    itself.setblocking(False)
    more = itself.send(BULK * 20)  # above what it has room for
    ending = socket.socket()
    ending.bind(("127.0.0.1", 0))
    ending.connect(ending.getsockname())
    ending.send(b"the last words to itself")
    ending.shutdown(socket.SHUT_WR)
    half, half_peer = connected(listener)
    half.sendall(b"last words")
    half.shutdown(socket.SHUT_WR)
    over, over_peer = connected(listener)
    over_peer.sendall(b"good bye")
    over_peer.close()
    to_child, of_child = connected(listener)
    child = os.fork()
    if child == 0:
        to_child.close()
        of_child.sendall(b"!")
        of_child.sendall(of_child.recv(100).upper())
        os._exit(0)
    of_child.close()
    to_child.recv(1)  # the child has closed what it does not need
    waiting, waiting_peer = connected(six or listener)
    got: list[bytes] = []
    receiver = threading.Thread(target=lambda: got.append(waiting.recv(100)))
    receiver.start()
    unused = socket.socket()
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    crowded = socket.create_server(("", 0))
    early, silent, deaf = (socket.create_connection(("127.0.0.1", crowded.getsockname()[1])) for _ in range(3))
    silent.shutdown(socket.SHUT_WR)
    deaf_inside, deaf_peer = connected(listener)
    for one in (deaf, deaf_inside):
        one.shutdown(socket.SHUT_RD)
    kept = [
        early,
        silent,
        listener,
        everywhere,
        client,
        server,
        half,
        half_peer,
        to_child,
        waiting,
        waiting_peer,
        bound,
    ]
    before = [options(sock) for sock in kept]
    (HERE / "ports").write_text(json.dumps([one.getsockname()[1] for one in (listener, everywhere)]))
    peers = [sock.getpeername() for sock in (client, server, half, half_peer, to_child)]
    ready_and_wait()

    for sock, was in zip(kept, before, strict=True):
        same(options(sock), was, "a socket")
    same([sock.getpeername() for sock in (client, server, half, half_peer, to_child)], peers, "peers")
    same(itself.recv(9), b"to itself", "what a socket has sent to itself")
    itself.setblocking(True)
    same(itself.recv(more, socket.MSG_WAITALL), (BULK * 20)[:more], "what was on its way from a socket to itself")
    itself.send(b"again")
    same((itself.recv(100), itself.getpeername()), (b"again", itself.getsockname()), "a socket connected to itself")
    same([ending.recv(100), ending.recv(100)], [b"the last words to itself", b""], "one that has ended itself")
    same(server.recv(len(BULK), socket.MSG_WAITALL), BULK, "what was under way")
    same(client.recv(100), b"the other way", "what was under way, back")
    client.sendall(b"more")
    same(server.recv(100), b"more", "what is sent afterwards")
    same(half_peer.recv(100) + half_peer.recv(100), b"last words", "a half that was shut")
    half_peer.sendall(b"still open")
    same(half.recv(100), b"still open", "the half that was not")
    same(over.recv(100) + over.recv(100), b"good bye", "a connection that its peer closed")
    to_child.sendall(b"hello")
    same(to_child.recv(100), b"HELLO", "the child's answer")
    same(os.waitpid(child, 0), (child, 0), "the child")
    for one in (deaf, deaf_inside):
        same(one.recv(1, socket.MSG_DONTWAIT), b"", "one that is shut for reading")
        one.sendall(b"not dumb")
    same(deaf_peer.recv(100), b"not dumb", "what one says that is shut for reading")
    accepted = {sock.getpeername(): sock for sock in (crowded.accept()[0] for _ in range(3))}
    same(set(accepted), {one.getsockname() for one in (early, silent, deaf)}, "those who waited to be accepted")
    same(accepted[deaf.getsockname()].recv(100), b"not dumb", "what one said that is shut for reading")
    for sock in (early, silent):
        accepted[sock.getsockname()].sendall(b"at last")
        same(sock.recv(100), b"at last", "a connection that was not accepted")
    early.sendall(b"hello")
    same(accepted[early.getsockname()].recv(100), b"hello", "its other way")
    same(accepted[silent.getsockname()].recv(100), b"", "a half that was shut before it was accepted")
    waiting_peer.sendall(b"awaited")
    receiver.join()
    same(got, [b"awaited"], "what a waiting thread got")
    for one in filter(None, (listener, six, everywhere)):
        if not one.getblocking():
            one.setblocking(True)
        expect(not select.select([one], [], [], 0)[0], "a listener has a client that nobody made")
        newcomer, accepted = connected(one)
        newcomer.sendall(b"new")
        same(accepted.recv(10), b"new", "a new connection")
    unused.connect(listener.getsockname())
    bound.listen()
    connected(bound)


judge(main)
