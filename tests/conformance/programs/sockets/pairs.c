/* Unix socket pairs of each type, within one process and between parent and child: what is queued arrives whole
 * and in order, messages keep their bounds, halves stay shut, options stay set. */
#include "ready.h"

#include <sys/socket.h>

static int stream[2], datagram[2], packet[2], shut[2], family[2], half[2];
static char sent[40000];

static void send_all(int fd, const char *bytes, size_t size)
{
	if (send(fd, bytes, size, MSG_NOSIGNAL) != (ssize_t)size)
		give_up("send %zu bytes", size);
}

static void check_message(int fd, const char *want, const char *what)
{
	char bytes[64] = "";
	ssize_t got = recv(fd, bytes, sizeof bytes - 1, MSG_DONTWAIT);
	expect(got == (ssize_t)strlen(want) && !strcmp(bytes, want), "%s: '%s' came as '%s' (%zd)", what,
	       want, bytes, got);
}

static void check_empty(int fd, const char *what)
{
	char byte;
	expect(recv(fd, &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "%s: more is queued than was sent",
	       what);
}

int main(void)
{
	begin();
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, stream) ||
	    socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, datagram) ||
	    socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packet) || socketpair(AF_UNIX, SOCK_STREAM, 0, shut) ||
	    socketpair(AF_UNIX, SOCK_STREAM, 0, family) || socketpair(AF_UNIX, SOCK_STREAM, 0, half))
		give_up("socketpair");
	for (size_t k = 0; k < sizeof sent; k++)
		sent[k] = (char)(k * 7 + k / 256);
	send_all(stream[0], sent, sizeof sent);
	send_all(stream[1], "back", 4);
	const char *messages[] = {"one", "two, which is longer", "3"};
	for (int k = 0; k < 3; k++) {
		send_all(datagram[0], messages[k], strlen(messages[k]));
		send_all(packet[1], messages[k], strlen(messages[k]));
	}
	send_all(shut[0], "last words", 10);
	shutdown(shut[0], SHUT_WR);
	int size = 123456, on = 1, size_before;
	setsockopt(stream[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
	setsockopt(datagram[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
	socklen_t length = sizeof size_before;
	getsockopt(stream[0], SOL_SOCKET, SO_SNDBUF, &size_before, &length);
	send_all(half[0], "orphan", 6);
	close(half[0]); /* the other end is gone, what it said is still there */
	send_all(family[0], "to the child", 12);
	pid_t child = fork();
	if (!child) {
		close(family[0]);
		char bytes[32] = "";
		ssize_t got = recv(family[1], bytes, 12, MSG_WAITALL);
		if (got != 12 || strcmp(bytes, "to the child"))
			_exit(1);
		got = recv(family[1], bytes, 5, MSG_WAITALL); /* comes after the restore */
		if (got != 5 || memcmp(bytes, "again", 5))
			_exit(2);
		send(family[1], "done", 4, MSG_NOSIGNAL);
		_exit(0);
	}
	close(family[1]);
	sleeps_in(child, SYS_recvfrom);
	ready_and_wait();

	static char back[sizeof sent];
	ssize_t got = recv(stream[1], back, sizeof back, MSG_WAITALL);
	expect(got == sizeof back && !memcmp(back, sent, sizeof back),
	       "the stream holds %zd bytes, or others", got);
	check_empty(stream[1], "stream");
	check_message(stream[0], "back", "stream, the other way");
	for (int k = 0; k < 3; k++) {
		check_message(datagram[1], messages[k], "datagram");
		check_message(packet[0], messages[k], "packet");
	}
	check_empty(datagram[1], "datagram");
	check_empty(packet[0], "packet");
	check_message(shut[1], "last words", "shut stream");
	char byte;
	expect(recv(shut[1], &byte, 1, MSG_DONTWAIT) == 0, "a stream whose other end is shut does not end");
	expect(send(shut[0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "a shut stream can be written");
	expect(send(shut[1], "open", 4, MSG_NOSIGNAL) == 4, "the open half of a stream: %s", strerror(errno));
	check_message(shut[0], "open", "the open half of a stream");
	check_message(half[1], "orphan", "an orphaned end");
	expect(recv(half[1], &byte, 1, MSG_DONTWAIT) == 0, "an orphaned end does not end");
	expect(send(half[1], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "an orphaned end can be written");
	int now = 0;
	getsockopt(stream[0], SOL_SOCKET, SO_SNDBUF, &now, &length);
	expect(now == size_before, "SO_SNDBUF: %d became %d", size_before, now);
	getsockopt(datagram[0], SOL_SOCKET, SO_PASSCRED, &now, &length);
	expect(now == 1, "SO_PASSCRED was lost");
	expect(fcntl(datagram[0], F_GETFL) & O_NONBLOCK, "O_NONBLOCK was lost");
	expect(fcntl(stream[0], F_GETFD) == FD_CLOEXEC && !fcntl(packet[0], F_GETFD),
	       "close-on-exec changed");
	send_all(family[0], "again", 5);
	char done[5] = "";
	expect(recv(family[0], done, 4, MSG_WAITALL) == 4 && !strcmp(done, "done"), "the child said '%s'",
	       done);
	int status;
	expect(waitpid(child, &status, 0) == child && !status, "the child is not content: %x", status);
	return verdict();
}
