/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Threads that have written or received a part of what they were asked to, and wait: all of it is moved, and the calls
 * change no register but those that any call changes.
 */
#include "../ready.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

enum { PARTLY = 5, WHOLE = 12, LARGE = 3 << 20 };

struct transfer {
	const char *what;
	long call;
	int here, there; /* the thread's end, and the other one */
	size_t size;
	int flags;
	pthread_t thread;
	pid_t tid;
	char *bytes;
	long result;
	bool kept; /* the registers with the arguments */
};

static char byte_at(size_t k)
{
	return (char)(k * 31 >> 3 ^ k);
}

static void *run(void *argument)
{
	struct transfer *t = argument;

	__atomic_store_n(&t->tid, own_tid(), __ATOMIC_SEQ_CST);
	register long fd __asm__("rdi") = t->here, buffer __asm__("rsi") = (long)t->bytes;
	register long size __asm__("rdx") = (long)t->size, flags __asm__("r10") = t->flags;
	register long address __asm__("r8") = 0, length __asm__("r9") = 0;
	long result = t->call;
	__asm__ volatile("syscall"
			 : "+a"(result), "+r"(fd), "+r"(buffer), "+r"(size), "+r"(flags), "+r"(address), "+r"(length)
			 :
			 : "rcx", "r11", "memory");
	t->result = result;
	t->kept = fd == t->here && buffer == (long)t->bytes && size == (long)t->size && flags == t->flags && !address &&
		  !length;
	return NULL;
}

static void start(struct transfer *t)
{
	t->bytes = malloc(t->size);
	for (size_t k = 0; k < t->size; k++)
		t->bytes[k] = t->call == SYS_recvfrom ? 0 : byte_at(k);
	if (pthread_create(&t->thread, NULL, run, t))
		give_up("pthread_create");
	while (!__atomic_load_n(&t->tid, __ATOMIC_SEQ_CST))
		sched_yield();
	sleeps_in(t->tid, t->call);
}

static void finish(struct transfer *t)
{
	char *got = malloc(t->size);

	if (t->call == SYS_recvfrom) {
		for (size_t k = PARTLY; k < WHOLE; k++)
			got[k] = byte_at(k);
		expect(write(t->there, got + PARTLY, WHOLE - PARTLY) == WHOLE - PARTLY, "%s: the rest is not sent",
		       t->what);
	} else {
		for (size_t at = 0; at < t->size;) {
			ssize_t more = read(t->there, got + at, t->size - at);
			if (more <= 0) {
				expect(false, "%s: it ends after %zu bytes", t->what, at);
				return;
			}
			at += (size_t)more;
		}
		t->bytes = got;
	}
	pthread_join(t->thread, NULL);
	expect(t->result == (long)t->size, "%s: %ld of %zu bytes", t->what, t->result, t->size);
	expect(t->kept, "%s: a register has changed", t->what);
	for (size_t k = 0; k < t->size; k++)
		if (t->bytes[k] != byte_at(k)) {
			expect(false, "%s: byte %zu is another one", t->what, k);
			break;
		}
}

static void tcp_pair(int ends[2])
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof(at);
	int listener = socket(AF_INET, SOCK_STREAM, 0);

	ends[0] = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(listener, (struct sockaddr *)&at, size) || listen(listener, 1) ||
	    getsockname(listener, (struct sockaddr *)&at, &size) || connect(ends[0], (struct sockaddr *)&at, size) ||
	    (ends[1] = accept(listener, NULL, NULL)) < 0)
		give_up("a connection");
	close(listener);
	/* Their end leaves no connection in TIME_WAIT, for whose port a wake would wait. */
	struct linger at_once = {.l_onoff = 1};
	for (int k = 0; k < 2; k++)
		setsockopt(ends[k], SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
}

int main(void)
{
	struct transfer transfers[] = {
		{.what = "a pipe", .call = SYS_write, .size = LARGE},
		{.what = "a unix socket", .call = SYS_write, .size = LARGE},
		{.what = "a sent unix socket", .call = SYS_sendto, .size = LARGE},
		{.what = "a TCP connection", .call = SYS_sendto, .size = 5 * LARGE, .flags = MSG_NOSIGNAL},
		{.what = "a received unix socket", .call = SYS_recvfrom, .size = WHOLE, .flags = MSG_WAITALL},
		{.what = "a received TCP connection", .call = SYS_recvfrom, .size = WHOLE, .flags = MSG_WAITALL},
	};
	enum { COUNT = sizeof(transfers) / sizeof(*transfers) };
	int ends[2];

	begin();
	for (int k = 0; k < COUNT; k++) {
		struct transfer *t = &transfers[k];
		bool unix_socket = strstr(t->what, "unix"), tcp = strstr(t->what, "TCP");
		if (tcp) {
			tcp_pair(ends);
		} else if (unix_socket) {
			if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends))
				give_up("socketpair");
		} else {
			if (pipe(ends))
				give_up("pipe");
			int reader = ends[0];
			ends[0] = ends[1];
			ends[1] = reader;
		}
		t->here = ends[0];
		t->there = ends[1];
		if (t->call == SYS_recvfrom) {
			char part[PARTLY];
			for (size_t byte = 0; byte < PARTLY; byte++)
				part[byte] = byte_at(byte);
			if (write(t->there, part, PARTLY) != PARTLY)
				give_up("write");
		}
		start(t);
	}
	ready_and_wait();
	for (int k = 0; k < COUNT; k++)
		finish(&transfers[k]);
	return verdict();
}
