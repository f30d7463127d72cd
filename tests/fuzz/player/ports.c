/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Sockets that share a port, connections to them, and options of sockets.
 */
#include "player.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

enum { GROUP, WILDCARD_IN_GROUP, WILDCARD, BOTH_FAMILIES, DATAGRAM_GROUP, DATAGRAMS, HOWS };

static int on = 1, off;
/* Closing resets a connection, also one that a listener accepts: in TIME_WAIT it would keep the port for a minute from a
 * restore whose listener has no SO_REUSEADDR by now. */
static const struct linger reset = {.l_onoff = 1};

static long failed(int fd)
{
	int error = errno;

	close(fd);
	errno = error;
	return -1;
}

static bool is_six(int fd)
{
	int domain;
	socklen_t size = sizeof(domain);

	return !getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) && domain == AF_INET6;
}

static long try_at_port(const long *a)
{
	long how = a[2] % HOWS;
	bool datagrams = how >= DATAGRAM_GROUP;
	bool group = how == GROUP || how == WILDCARD_IN_GROUP || how == DATAGRAM_GROUP;
	int option = group ? SO_REUSEPORT : SO_REUSEADDR, fds[2];
	struct sockaddr_in6 six = {.sin6_family = AF_INET6};
	struct sockaddr_in four = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof(four), larger = sizeof(six);

	for (int i = 0; i < 2; i++) {
		fds[i] = socket(i == 0 && how == BOTH_FAMILIES ? AF_INET6 : AF_INET,
				(datagrams ? SOCK_DGRAM : SOCK_STREAM) | SOCK_NONBLOCK, 0);
		if (fds[i] < 0 || (how != BOTH_FAMILIES && setsockopt(fds[i], SOL_SOCKET, option, &on, sizeof(on))))
			return failed(fds[i]);
	}
	if (how == BOTH_FAMILIES) {
		setsockopt(fds[0], IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
		if (bind(fds[0], (struct sockaddr *)&six, larger) ||
		    getsockname(fds[0], (struct sockaddr *)&six, &larger))
			return failed(fds[0]), failed(fds[1]);
		four = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = six.sin6_port};
	} else {
		if (how == WILDCARD_IN_GROUP || how == WILDCARD || how == DATAGRAMS)
			four.sin_addr.s_addr = htonl(INADDR_ANY);
		if (bind(fds[0], (struct sockaddr *)&four, size) ||
		    getsockname(fds[0], (struct sockaddr *)&four, &size))
			return failed(fds[0]), failed(fds[1]);
		four.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	}
	if (bind(fds[1], (struct sockaddr *)&four, size))
		return failed(fds[0]), failed(fds[1]);
	for (int i = 0; i < 2; i++) {
		setsockopt(fds[i], SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		if (!datagrams && a[3] >> i & 1 && !listen(fds[i], (int)(a[3] >> 4 & 3)) && a[3] >> (i + 2) & 1)
			shutdown(fds[i], SHUT_RDWR);
		/* Of a group the kernel chooses one for each connection: `connect_to` must know of it. */
		if (how != GROUP && how != DATAGRAM_GROUP && a[4] >> i & 1)
			setsockopt(fds[i], SOL_SOCKET, option, &off, sizeof(off));
	}
	long first = place_fd(fds[0], a[0]), second = place_fd(fds[1], a[1]);
	return first < 0 || second < 0 ? -1 : 0;
}

/* two descriptors, how, who listens or is shut down, whose options are off again: two sockets at one port */
static long at_port(const long *a)
{
	long result = try_at_port(a);

	/* The kernel chooses the port for the first one; another program may have it in the other's family or address. */
	for (int i = 0; i < 10 && result && errno == EADDRINUSE; i++)
		result = try_at_port(a);
	return result;
}

/* descriptor, descriptor for a new one, whether it sends something: a connection to where another socket is */
static long connect_to(const long *a)
{
	struct sockaddr_storage at = {0};
	struct sockaddr_in *four = (struct sockaddr_in *)&at;
	struct sockaddr_in6 *six = (struct sockaddr_in6 *)&at;
	socklen_t size = sizeof(at), length = sizeof(int);
	int there = fd_of(a[0]), type, group = 0, listens = 0;

	if (getsockopt(there, SOL_SOCKET, SO_TYPE, &type, &length) || getsockname(there, (struct sockaddr *)&at, &size))
		return -1;
	if ((at.ss_family != AF_INET && at.ss_family != AF_INET6) || !four->sin_port)
		return -2;
	getsockopt(there, SOL_SOCKET, SO_REUSEPORT, &group, &length);
	getsockopt(there, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length);
	if (group || !listens)
		return -3;
	if (getpid() != shared->actors[0].pid)
		return -5; /* it may end, and so close what was not accepted: see below */
	if (at.ss_family == AF_INET && four->sin_addr.s_addr == htonl(INADDR_ANY))
		four->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (at.ss_family == AF_INET6 && IN6_IS_ADDR_UNSPECIFIED(&six->sin6_addr))
		six->sin6_addr = in6addr_loopback;
	int fd = socket(at.ss_family, type | SOCK_NONBLOCK, 0);
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	if (connect(fd, (struct sockaddr *)&at, size) && errno != EINPROGRESS)
		return failed(fd);
	struct pollfd one = {.fd = fd, .events = POLLOUT};
	if (poll(&one, 1, 0) != 1 || one.revents != POLLOUT) { /* there is no room for it */
		close(fd);
		return -4;
	}
	if (a[2] % 4 == 0)
		send(fd, "first", 5, MSG_NOSIGNAL);
	dup(fd); /* one that is closed before it is accepted is lost (docs/objects.md) */
	return place_fd(fd, a[1]);
}

static const struct {
	int level, name, scale;
	bool of_listeners;
} options[] = {{SOL_SOCKET, SO_KEEPALIVE, 1, false},
	       {SOL_SOCKET, SO_REUSEADDR, 1, false},
	       {SOL_SOCKET, SO_PASSCRED, 1, false},
	       {SOL_SOCKET, SO_OOBINLINE, 1, false},
	       {SOL_SOCKET, SO_PRIORITY, 1, false},
	       {SOL_SOCKET, SO_BROADCAST, 1, false},
	       {IPPROTO_TCP, TCP_NODELAY, 1, false},
	       {IPPROTO_TCP, TCP_KEEPIDLE, 1, false},
	       {IPPROTO_TCP, TCP_USER_TIMEOUT, 1, false},
	       {IPPROTO_IP, IP_TTL, 1, false},
	       {SOL_SOCKET, SO_RCVLOWAT, 1, false},
	       {SOL_SOCKET, SO_TIMESTAMP, 1, false},
	       /* So long that nothing is accepted because its time is over. */
	       {IPPROTO_TCP, TCP_DEFER_ACCEPT, 500, true},
	       /* More than any packet has on the loopback. */
	       {IPPROTO_IP, IP_MINTTL, 51, true},
	       {IPPROTO_IPV6, IPV6_MINHOPCOUNT, 51, true},
	       {IPPROTO_TCP, TCP_FASTOPEN, 1, true},
	       {IPPROTO_TCP, TCP_SAVE_SYN, 1, true},
	       {SOL_SOCKET, SO_DONTROUTE, 1, false},
	       {IPPROTO_IP, IP_TOS, 4, false},
	       {IPPROTO_IP, IP_RECVTTL, 1, false},
	       {IPPROTO_IP, IP_RECVERR, 1, false},
	       {IPPROTO_IP, IP_MTU_DISCOVER, 1, false},
	       {IPPROTO_IP, IP_FREEBIND, 1, false},
	       {IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1, false},
	       {IPPROTO_IPV6, IPV6_V6ONLY, 1, false},
	       {IPPROTO_IPV6, IPV6_UNICAST_HOPS, 9, false},
	       {IPPROTO_IPV6, IPV6_RECVPKTINFO, 1, false},
	       {IPPROTO_TCP, TCP_LINGER2, 1, false},
	       {IPPROTO_TCP, TCP_SYNCNT, 1, false},
	       {IPPROTO_TCP, TCP_KEEPCNT, 1, false},
	       {IPPROTO_TCP, TCP_NOTSENT_LOWAT, 4096, false},
	       {SOL_SOCKET, SO_NO_CHECK, 1, false}};

enum { OPTIONS = sizeof(options) / sizeof(*options) };

/* descriptor, (any), value, which: an option of a socket */
static long set_option(const long *a)
{
	long which = a[3] % (OPTIONS + 1);
	int listens = 0;
	socklen_t size = sizeof(listens);

	if (which == OPTIONS)
		return setsockopt(fd_of(a[0]), SOL_SOCKET, SO_BINDTODEVICE, "lo", a[2] % 2 ? 2 : 0);
	if (options[which].of_listeners &&
	    (getsockopt(fd_of(a[0]), SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) || !listens))
		return -2;
	int value = (int)(a[2] % 6) * options[which].scale;
	return setsockopt(fd_of(a[0]), options[which].level, options[which].name, &value, sizeof(value));
}

/* descriptor: all of its options and whether it is connected */
static long socket_state(const long *a)
{
	struct sockaddr_storage peer;
	socklen_t size = sizeof(peer);
	char device[16] = "";
	int value, type;

	socklen_t length = sizeof(type);
	if (getsockopt(fd_of(a[0]), SOL_SOCKET, SO_TYPE, &type, &length))
		return -1;
	for (int i = 0; i < OPTIONS; i++) {
		length = sizeof(value);
		value = -1;
		say(" %d",
		    getsockopt(fd_of(a[0]), options[i].level, options[i].name, &value, &length) ? -errno : value);
	}
	length = sizeof(value);
	value = 0;
	if (!getsockopt(fd_of(a[0]), SOL_SOCKET, SO_ACCEPTCONN, &value, &length))
		say(" listens %d", value);
	if (!getsockopt(fd_of(a[0]), SOL_SOCKET, SO_REUSEPORT, &value, &length))
		say(" group %d", value);
	length = sizeof(device);
	if (!getsockopt(fd_of(a[0]), SOL_SOCKET, SO_BINDTODEVICE, device, &length) && device[0])
		say(" at %s", device);
	length = sizeof(value);
	getsockopt(fd_of(a[0]), SOL_SOCKET, SO_ERROR, &value, &length);
	/* That a datagram came to nobody is not kept, like a datagram on its way. */
	say(" error %d peer %d six %d", value != 0 && type != SOCK_DGRAM,
	    getpeername(fd_of(a[0]), (struct sockaddr *)&peer, &size) ? -errno : peer.ss_family, is_six(fd_of(a[0])));
	return type;
}

const struct verb port_verbs[] = {{"at_port", at_port},
				  {"connect_to", connect_to},
				  {"set_option", set_option},
				  {"socket_state", socket_state},
				  {0}};
