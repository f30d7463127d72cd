/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Descriptors that wait for something else: events, timers, signals, files, processes, and other descriptors.
 */
#include "player.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

static long event(const long *a)
{
	return place_fd(eventfd((unsigned int)a[1] % 100, (a[2] % 2 ? EFD_SEMAPHORE : 0) | EFD_NONBLOCK), a[0]);
}

static long count(const long *a)
{
	uint64_t value = (uint64_t)a[2] % 100 + 1;

	if (is_terminal(fd_of(a[0])) || is_reset(fd_of(a[0])))
		return -2;
	int flags = impatient(fd_of(a[0]));
	long size = a[1] % 2 ? write(fd_of(a[0]), &value, 8) : read(fd_of(a[0]), &value, 8);

	patient(fd_of(a[0]), flags);
	arrive(fd_of(a[0]));
	return size < 0 ? -1 : (long)value % 100000;
}

static long epoll(const long *a)
{
	return place_fd(epoll_create1(a[1] % 2 ? EPOLL_CLOEXEC : 0), a[0]);
}

/* epoll, descriptor, events, operation */
static long watch(const long *a)
{
	static const uint32_t events[] = {EPOLLIN, EPOLLOUT, EPOLLIN | EPOLLET, EPOLLIN | EPOLLONESHOT,
					  EPOLLIN | EPOLLOUT | EPOLLRDHUP};
	static const int operations[] = {EPOLL_CTL_ADD, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL};
	struct epoll_event one = {.events = events[a[2] % 5], .data.u64 = (uint64_t)a[1] % FDS};

	return epoll_ctl(fd_of(a[0]), operations[a[3] % 4], fd_of(a[1]), &one);
}

/* An edge that was reported may be reported again after a wake, as epoll(7) allows at any time. */
bool has_edges(int fd)
{
	char path[64], text[8192] = "";
	int info;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	info = open(path, O_RDONLY | O_CLOEXEC);
	if (info < 0 || read(info, text, sizeof(text) - 1) < 0)
		*text = 0;
	close(info);
	return strstr(text, "events: 8"); /* EPOLLET is its highest bit */
}

static long happened(const long *a)
{
	struct epoll_event found[FDS];
	int number = epoll_wait(fd_of(a[0]), found, FDS, 0);
	unsigned long sum = 0;

	if (has_edges(fd_of(a[0])))
		return -2;
	for (int i = 0; i < number; i++)
		sum += (found[i].data.u64 + 1) * 1000003 + found[i].events;
	say(" sum %lu", sum);
	return number;
}

/* descriptor, clock, state: far away, off, or expired */
static long timer(const long *a)
{
	static const int clocks[] = {CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_BOOTTIME};
	struct itimerspec spec = {.it_value.tv_sec = a[2] % 3 == 0 ? 5000 : 0,
				  .it_value.tv_nsec = a[2] % 3 == 1,
				  .it_interval.tv_sec = 7000};
	int fd = timerfd_create(clocks[a[1] % 3], TFD_NONBLOCK);
	struct pollfd one = {.fd = fd, .events = POLLIN};

	timerfd_settime(fd, 0, &spec, NULL);
	if (a[2] % 3 == 1)
		poll(&one, 1, 1000);
	return place_fd(fd, a[0]);
}

static long timer_state(const long *a)
{
	struct itimerspec spec;

	if (timerfd_gettime(fd_of(a[0]), &spec))
		return -1;
	return spec.it_interval.tv_sec * 10 + (spec.it_value.tv_sec > 3000);
}

static long signals(const long *a)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	sigaddset(&set, SIGRTMIN + (int)(a[1] % 4));
	return place_fd(signalfd(-1, &set, SFD_NONBLOCK), a[0]);
}

static long taken(const long *a)
{
	struct signalfd_siginfo info;

	if (is_terminal(fd_of(a[0])) || is_reset(fd_of(a[0])))
		return -2;
	int flags = impatient(fd_of(a[0]));
	long size = read(fd_of(a[0]), &info, sizeof(info));

	patient(fd_of(a[0]), flags);
	return size == sizeof(info) ? (long)info.ssi_signo * 100 + info.ssi_int % 100 : -1;
}

/* descriptor, what: the folder, its subfolder, a file */
/* descriptor, what, name */
static long inotify(const long *a)
{
	int fd = inotify_init1(IN_NONBLOCK);

	say(" watch %d", inotify_add_watch(fd,
					   a[1] % 4 == 0   ? shared->place
					   : a[1] % 4 == 1 ? "d"
					   : a[1] % 4 == 2 ? "a"
							   : name(a[2]),
					   IN_CREATE | IN_DELETE | IN_MODIFY | (a[1] % 8 > 3 ? IN_DELETE_SELF : 0)));
	return place_fd(fd, a[0]);
}

static long news(const long *a)
{
	_Alignas(8) char text[8192] = ""; /* what else was read there is no news, but says the same each time */

	if (is_terminal(fd_of(a[0])) || is_reset(fd_of(a[0])))
		return -2;
	int flags = impatient(fd_of(a[0]));
	long size = read(fd_of(a[0]), text, sizeof(text)), number = 0;

	patient(fd_of(a[0]), flags);
	if (size < 0)
		return -1;
	for (long at = 0; at + (long)sizeof(struct inotify_event) <= size; number++) {
		struct inotify_event *one = (void *)(text + at);

		say(" %d:%x:%s", one->wd, one->mask, one->len ? one->name : "");
		at += (long)sizeof(*one) + one->len;
	}
	return number;
}

static long pidfd(const long *a)
{
	return place_fd((int)syscall(SYS_pidfd_open, shared->actors[a[1] % ACTORS].pid, 0), a[0]);
}

const struct verb watcher_verbs[] = {{"event", event},
				     {"count", count},
				     {"epoll", epoll},
				     {"watch", watch},
				     {"happened", happened},
				     {"timer", timer},
				     {"timer_state", timer_state},
				     {"signals", signals},
				     {"taken", taken},
				     {"inotify", inotify},
				     {"news", news},
				     {"pidfd", pidfd},
				     {0}};
