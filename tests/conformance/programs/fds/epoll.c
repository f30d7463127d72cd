/* An epoll set: level, edge and one-shot watches with their data, a set within a set, a description that is
 * watched under a number that was closed since. One of them polls busily. */
#include "ready.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

enum { QUIET, LEVEL, EDGE, ONESHOT_USED, ONESHOT, OUTPUT, INNER, COUNT };

/* struct epoll_params, EPIOCSPARAMS, EPIOCGPARAMS (Linux 6.9) */
struct busy {
	uint32_t microseconds;
	uint16_t budget;
	uint8_t prefer, pad;
};
#define SET_BUSY _IOW(0x8a, 1, struct busy)
#define GET_BUSY _IOR(0x8a, 2, struct busy)

static int fds[COUNT];

static int collect(int epoll, uint64_t *data, int *events)
{
	struct epoll_event got[16];
	int n;
	while ((n = epoll_wait(epoll, got, 16, 0)) < 0 && errno == EINTR)
		continue;
	for (int k = 0; k < n; k++) {
		data[k] = got[k].data.u64;
		events[k] = (int)got[k].events;
	}
	return n;
}

static bool has(int n, const uint64_t *data, uint64_t wanted)
{
	for (int k = 0; k < n; k++)
		if (data[k] == wanted)
			return true;
	return false;
}

static uint64_t mark(int which)
{
	return 0xabcdef0000000000UL + (uint64_t)which;
}

int main(void)
{
	begin();
	int epoll = epoll_create1(EPOLL_CLOEXEC), inner = epoll_create1(0), inside = eventfd(0, 0), ends[2];
	if (epoll < 0 || inner < 0 || pipe(ends))
		give_up("epoll");
	for (int k = 0; k < OUTPUT; k++)
		fds[k] = eventfd(0, EFD_NONBLOCK);
	fds[OUTPUT] = ends[1];
	fds[INNER] = inner;
	const uint32_t events[COUNT] = {EPOLLIN,
					EPOLLIN,
					EPOLLIN | EPOLLET | EPOLLRDHUP,
					EPOLLIN | EPOLLONESHOT,
					EPOLLIN | EPOLLONESHOT,
					EPOLLOUT | EPOLLIN,
					EPOLLIN};
	for (int k = 0; k < COUNT; k++) {
		struct epoll_event event = {.events = events[k], .data.u64 = mark(k)};
		if (epoll_ctl(epoll, EPOLL_CTL_ADD, fds[k], &event))
			give_up("epoll_ctl");
	}
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = 5};
	epoll_ctl(inner, EPOLL_CTL_ADD, inside, &event);
	uint64_t one = 1, data[16];
	int seen[16];
	if (write(fds[ONESHOT_USED], &one, 8) != 8)
		give_up("write");
	int n = collect(epoll, data, seen);
	if (!has(n, data, mark(ONESHOT_USED)) || !has(n, data, mark(OUTPUT)))
		give_up("events before");
	if (write(fds[LEVEL], &one, 8) != 8)
		give_up("write");
	int copy = dup(epoll);
	const struct busy busy = {.microseconds = 50, .budget = 8};
	bool busily = !ioctl(inner, SET_BUSY, &busy);
	ready_and_wait();

	struct busy now = {0};
	expect(!busily || (!ioctl(inner, GET_BUSY, &now) && !memcmp(&busy, &now, sizeof now)),
	       "it polls for %u us, %u packets", now.microseconds, now.budget);
	n = collect(epoll, data, seen);
	expect(has(n, data, mark(LEVEL)), "the level watch with content is silent");
	expect(has(n, data, mark(OUTPUT)), "the watch for writing is silent");
	expect(!has(n, data, mark(QUIET)), "a watch without content speaks");
	expect(!has(n, data, mark(ONESHOT_USED)), "a one-shot watch that was used up speaks again");
	expect(!has(n, data, mark(ONESHOT)) && !has(n, data, mark(INNER)), "watches without content speak");
	for (int k = 0; k < n; k++)
		expect(has(COUNT,
			   (uint64_t[COUNT]){mark(0), mark(1), mark(2), mark(3), mark(4), mark(5), mark(6)},
			   data[k]),
		       "unknown data %lx", data[k]);
	uint64_t value;
	expect(read(fds[LEVEL], &value, 8) == 8 && value == 1, "the level watch's content: %lu", value);
	expect(write(fds[EDGE], &one, 8) == 8 && write(fds[ONESHOT], &one, 8) == 8 &&
		       write(inside, &one, 8) == 8,
	       "write: %s", strerror(errno));
	n = collect(copy, data, seen);
	expect(has(n, data, mark(EDGE)), "the edge watch is silent");
	expect(has(n, data, mark(ONESHOT)), "the one-shot watch is silent");
	expect(has(n, data, mark(INNER)), "the set within the set is silent");
	expect(!has(n, data, mark(LEVEL)), "the level watch speaks without content");
	n = collect(epoll, data, seen);
	expect(!has(n, data, mark(EDGE)), "the edge watch speaks twice for one edge");
	expect(!has(n, data, mark(ONESHOT)), "the one-shot watch speaks twice");
	event = (struct epoll_event){.events = EPOLLIN | EPOLLONESHOT, .data.u64 = mark(ONESHOT_USED)};
	expect(!epoll_ctl(epoll, EPOLL_CTL_MOD, fds[ONESHOT_USED], &event),
	       "a used one-shot watch is gone: %s", strerror(errno));
	n = collect(epoll, data, seen);
	expect(has(n, data, mark(ONESHOT_USED)), "a one-shot watch that was armed again is silent");
	for (int k = 0; k < COUNT; k++)
		expect(!epoll_ctl(epoll, EPOLL_CTL_DEL, fds[k], NULL), "watch %d is gone: %s", k,
		       strerror(errno));
	return verdict();
}
