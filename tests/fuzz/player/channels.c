/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Pipes and sockets.
 */
#include "player.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

static long pair(int *fds, const long *a)
{
	long first = place_fd(fds[0], a[0]), second = place_fd(fds[1], a[1]);

	return first < 0 || second < 0 ? -1 : 0;
}

/* two descriptors, flags, capacity */
static long pipe_(const long *a)
{
	static const int flags[] = {0, O_NONBLOCK, O_DIRECT, O_CLOEXEC};
	int fds[2];

	if (pipe2(fds, flags[a[2] % 4]))
		return -1;
	if (a[3] % 3 == 0)
		fcntl(fds[0], F_SETPIPE_SZ, 4096 << a[3] % 5);
	return pair(fds, a);
}

/* two descriptors, type */
static long socketpair_(const long *a)
{
	static const int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
	int fds[2];

	return socketpair(AF_UNIX, types[a[2] % 3], 0, fds) ? -1 : pair(fds, a);
}

/* two descriptors, a listener's or none, family */
static long tcp(const long *a)
{
	struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
	struct sockaddr_in four = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct sockaddr *at = a[3] % 2 ? (struct sockaddr *)&six : (struct sockaddr *)&four;
	socklen_t size = a[3] % 2 ? sizeof(six) : sizeof(four);
	int listener = socket(at->sa_family, SOCK_STREAM, 0), on = 1, fds[2];

	/* What is accepted inherits it: in TIME_WAIT it would keep the port for a minute from a restore otherwise. */
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	fds[0] = socket(at->sa_family, SOCK_STREAM, 0);
	if (bind(listener, at, size) || listen(listener, 3) || getsockname(listener, at, &size) ||
	    connect(fds[0], at, size)) {
		close(listener);
		close(fds[0]);
		return -1;
	}
	fds[1] = accept(listener, NULL, NULL);
	if (a[4] % 2)
		connect(socket(at->sa_family, SOCK_STREAM, 0), at,
			size); /* one that nobody accepts, at a number of its own */
	if (a[2] % 2)
		place_fd(listener, a[2]);
	else
		close(listener);
	return pair(fds, a);
}

/* listener, descriptor */
static long accept_(const long *a)
{
	struct pollfd one = {.fd = fd_of(a[0]), .events = POLLIN};

	if (poll(&one, 1, 0) != 1 || !(one.revents & POLLIN)) {
		errno = EAGAIN;
		return -1;
	}
	return place_fd(accept4(fd_of(a[0]), NULL, NULL, SOCK_NONBLOCK), a[1]);
}

/* two descriptors */
static long udp(const long *a)
{
	struct sockaddr_in at[2];
	socklen_t size = sizeof(*at);
	int fds[2];

	for (int i = 0; i < 2; i++) {
		fds[i] = socket(AF_INET, SOCK_DGRAM, 0);
		at[i] = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
		if (bind(fds[i], (struct sockaddr *)&at[i], size) ||
		    getsockname(fds[i], (struct sockaddr *)&at[i], &size))
			return -1;
	}
	if (connect(fds[0], (struct sockaddr *)&at[1], size) ||
	    (a[2] % 2 && connect(fds[1], (struct sockaddr *)&at[0], size)))
		return -1;
	return pair(fds, a);
}

/* a file's name, or an abstract one */
static struct sockaddr_un unix_name(long index, socklen_t *size)
{
	struct sockaddr_un at = {.sun_family = AF_UNIX};

	*size = sizeof(at);
	if (index % 3 == 2)
		*size = (socklen_t)offsetof(struct sockaddr_un, sun_path) + 1 +
			(socklen_t)snprintf(at.sun_path + 1, sizeof(at.sun_path) - 1, "player-%08x-%ld", own_number(),
					    index % 4);
	else
		snprintf(at.sun_path, sizeof(at.sun_path), index % 2 ? "socket%ld" : "d/socket%ld", index % 4);
	return at;
}

/* descriptor, name, type */
static long unix_listen(const long *a)
{
	socklen_t size;
	struct sockaddr_un at = unix_name(a[1], &size);
	int fd = socket(AF_UNIX, a[2] % 2 ? SOCK_STREAM : SOCK_SEQPACKET, 0);

	if (bind(fd, (struct sockaddr *)&at, size) || listen(fd, 3)) {
		int error = errno;

		close(fd);
		errno = error;
		return -1;
	}
	return place_fd(fd, a[0]);
}

/* descriptor, name, type */
static long unix_connect(const long *a)
{
	socklen_t size;
	struct sockaddr_un at = unix_name(a[1], &size);
	int fd = socket(AF_UNIX, (a[2] % 2 ? SOCK_STREAM : SOCK_SEQPACKET) | SOCK_NONBLOCK, 0);

	if (connect(fd, (struct sockaddr *)&at, size)) {
		int error = errno;

		close(fd);
		errno = error;
		return -1;
	}
	return place_fd(fd, a[0]);
}

/* Whether a socket that is passed may come to lie in its own queue. When nobody else has it, it is gone as soon as the
 * kernel has collected it, in its own time. */
static bool may_be_garbage(int fd)
{
	int domain, listens;
	socklen_t size = sizeof(domain);

	return !getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) && domain == AF_UNIX &&
	       !getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) && !listens;
}

/* descriptor, bytes, value, descriptor that goes along or none */
static long send_(const long *a)
{
	char text[3000], control[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec part = {text, a[1] % 3000 + 1};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	int passed = fd_of(a[3]);

	memset(text, '0' + (int)(a[2] % 10), sizeof(text));
	if (a[4] % 3 == 0 && !may_be_garbage(passed)) {
		message.msg_control = control;
		message.msg_controllen = sizeof(control);
		*CMSG_FIRSTHDR(&message) = (struct cmsghdr){
			.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&message)), &passed, sizeof(int));
	}
	if (is_reset(fd_of(a[0])))
		return -2;
	long size = sendmsg(fd_of(a[0]), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
	arrive(fd_of(a[0]));
	return size;
}

/* descriptor, bytes, descriptor for one that comes along */
static long receive(const long *a)
{
	char text[3000], control[CMSG_SPACE(8 * sizeof(int))];
	struct iovec part = {text, a[1] % 3000 + 1};
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
	int fds[8];

	if (is_reset(fd_of(a[0])))
		return -2;
	long size = recvmsg(fd_of(a[0]), &message, MSG_DONTWAIT | (a[3] % 4 ? 0 : MSG_PEEK)), sum = 0;

	if (size < 0)
		return -1;
	for (struct cmsghdr *one = CMSG_FIRSTHDR(&message); one; one = CMSG_NXTHDR(&message, one))
		if (one->cmsg_level == SOL_SOCKET && one->cmsg_type == SCM_RIGHTS) {
			size_t count = (one->cmsg_len - CMSG_LEN(0)) / sizeof(int);

			memcpy(fds, CMSG_DATA(one), count * sizeof(int));
			for (size_t i = 0; i < count; i++)
				if (i)
					close(fds[i]);
				else
					place_fd(fds[i], a[2]);
			say(" and %zu", count);
		}
	for (long i = 0; i < size; i++)
		sum = sum * 31 + text[i];
	say(" sum %lx flags %x", sum & 0xffffff, message.msg_flags & (MSG_TRUNC | MSG_CTRUNC | MSG_EOR));
	return size;
}

/* two descriptors: datagrams between names that the kernel or we have chosen, connected or not */
static long unix_datagrams(const long *a)
{
	struct sockaddr_un at = {.sun_family = AF_UNIX};
	socklen_t size = sizeof(at.sun_family);
	int fds[2] = {socket(AF_UNIX, SOCK_DGRAM, 0), socket(AF_UNIX, SOCK_DGRAM, 0)};

	if (bind(fds[0], (struct sockaddr *)&at, size))
		return -1;
	size = sizeof(at);
	getsockname(fds[0], (struct sockaddr *)&at, &size);
	if (connect(fds[1], (struct sockaddr *)&at, size))
		return -1;
	return pair(fds, a);
}

/* descriptor, bound: a socket that is not connected, and may have a port */
static long alone(const long *a)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, (a[2] % 2 ? SOCK_STREAM : SOCK_DGRAM) | (a[3] % 2 ? SOCK_NONBLOCK : 0), 0);

	if (fd < 0 || (a[1] % 3 && bind(fd, (struct sockaddr *)&at, sizeof(at))))
		return -1;
	if (a[1] % 3 == 2 && a[2] % 2)
		listen(fd, (int)(a[3] % 10));
	return place_fd(fd, a[0]);
}

/* descriptor, value: a byte that is urgent */
static long urgent(const long *a)
{
	char byte = (char)('a' + a[1] % 26);
	int domain;
	socklen_t length = sizeof(domain);

	/* Of a unix socket that has gone by one the kernel still counts it (FIONREAD), which nothing can bring about. */
	if (getsockopt(fd_of(a[0]), SOL_SOCKET, SO_DOMAIN, &domain, &length) || domain == AF_UNIX)
		return -2;
	if (is_reset(fd_of(a[0])))
		return -2;
	long size = send(fd_of(a[0]), &byte, 1, MSG_OOB | MSG_DONTWAIT | MSG_NOSIGNAL);
	arrive(fd_of(a[0]));
	return size;
}

static long linger(const long *a)
{
	struct linger what = {.l_onoff = (int)(a[1] % 2), .l_linger = (int)(a[2] % 10)};

	return setsockopt(fd_of(a[0]), SOL_SOCKET, SO_LINGER, &what, sizeof(what));
}

static long shut(const long *a)
{
	static const int how[] = {SHUT_RD, SHUT_WR, SHUT_RDWR};
	int protocol, one = how[a[1] % 3];
	struct sockaddr_in at = {0};
	socklen_t length = sizeof(protocol), size = sizeof(at);

	/* UDP without a port that is shut for writing alone is not kept (docs/objects.md). */
	if (!getsockopt(fd_of(a[0]), SOL_SOCKET, SO_PROTOCOL, &protocol, &length) && protocol == IPPROTO_UDP &&
	    one == SHUT_WR && (getsockname(fd_of(a[0]), (struct sockaddr *)&at, &size) || !at.sin_port))
		one = SHUT_RDWR;
	return shutdown(fd_of(a[0]), one);
}

/* descriptor: how much waits there, and what poll says */
static long ready(const long *a)
{
	struct pollfd one = {.fd = fd_of(a[0]), .events = POLLIN | POLLOUT | POLLPRI | POLLRDHUP};
	struct stat it;
	int waiting = 0, type;

	if (fstat(fd_of(a[0]), &it))
		return -1;
	if (has_edges(one.fd))
		return -2;
	poll(&one, 1, 0);
	socklen_t size = sizeof(type);
	if (S_ISSOCK(it.st_mode) && !getsockopt(one.fd, SOL_SOCKET, SO_TYPE, &type, &size) && type == SOCK_DGRAM)
		one.revents &= ~POLLERR;
	/* What lies in a pipe that nobody reads is lost, and with it that it is full. */
	if (S_ISFIFO(it.st_mode) && one.revents & POLLERR)
		one.revents &= ~POLLOUT;
	if ((S_ISFIFO(it.st_mode) || S_ISSOCK(it.st_mode)) && !(one.revents & POLLERR) &&
	    !ioctl(fd_of(a[0]), FIONREAD, &waiting))
		say(" %d wait", waiting);
	return one.revents;
}

static long capacity(const long *a)
{
	return fcntl(fd_of(a[0]), F_GETPIPE_SZ);
}

const struct verb channel_verbs[] = {{"pipe", pipe_},
				     {"socketpair", socketpair_},
				     {"tcp", tcp},
				     {"accept", accept_},
				     {"udp", udp},
				     {"unix_listen", unix_listen},
				     {"unix_connect", unix_connect},
				     {"send", send_},
				     {"receive", receive},
				     {"unix_datagrams", unix_datagrams},
				     {"alone", alone},
				     {"urgent", urgent},
				     {"linger", linger},
				     {"shut", shut},
				     {"ready", ready},
				     {"capacity", capacity},
				     {0}};
