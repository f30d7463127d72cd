/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Calls in which an actor waits while the others go on, and is saved: each ends when another one sees to it, or by
 * itself after a moment. What the call gave is told then.
 */
#include "player.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/personality.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

/* What all actors inherit to wait at; each is used by one at a time. */
enum {
	READ_END = SHARED_FD + 1,
	WRITE_END,
	LEFT,
	RIGHT,
	COUNTER,
	WATCHER,
	FULL_READ,
	FULL_WRITE,
	HELD,
	WANTED,
	PART_READ,
	PART_WRITE
};
enum { MOMENT = 100000000, WAKES = 10 /* the real-time signal that wakes, which has a handler */ };

static void on_wake(int number)
{
	(void)number;
}

void attach_waits(void)
{
	struct sigaction what = {.sa_handler = on_wake};

	sigaction(SIGRTMIN + WAKES, &what, NULL);
}

static void put(int fd, int number)
{
	if (fd != number) {
		dup2(fd, number);
		close(fd);
	}
}

void begin_waits(void)
{
	struct epoll_event event = {.events = EPOLLIN};
	char path[PATH_MAX + 16];
	static char page[4096];
	int fds[2];

	if (pipe(fds))
		_exit(92);
	put(fds[0], READ_END);
	put(fds[1], WRITE_END);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds))
		_exit(92);
	put(fds[0], LEFT);
	put(fds[1], RIGHT);
	put(eventfd(0, 0), COUNTER);
	put(epoll_create1(0), WATCHER);
	epoll_ctl(WATCHER, EPOLL_CTL_ADD, COUNTER, &event);
	if (pipe(fds))
		_exit(92);
	put(fds[0], FULL_READ);
	put(fds[1], FULL_WRITE);
	fcntl(FULL_WRITE, F_SETPIPE_SZ, sizeof(page));
	if (write(FULL_WRITE, page, sizeof(page)) != sizeof(page))
		_exit(92);
	if (pipe(fds))
		_exit(92);
	put(fds[0], PART_READ);
	put(fds[1], PART_WRITE);
	fcntl(PART_WRITE, F_SETPIPE_SZ, sizeof(page));
	fcntl(PART_READ, F_SETFL, O_NONBLOCK);
	snprintf(path, sizeof(path), "%s.lock", shared->place);
	put(open(path, O_RDWR | O_CREAT, 0600), HELD);
	put(open(path, O_RDWR), WANTED);
	flock(HELD, LOCK_EX);
}

static long lock_range(int fd, int command, short kind)
{
	struct flock lock = {.l_type = kind, .l_len = 10};

	return fcntl(fd, command, &lock);
}

/* As a C library waits: the number of the call stands before it, which is how it is known when it was interrupted twice
 * (docs/architecture.md); syscall(3) takes it from a register. */
static long futex_wait(_Atomic uint32_t *word, const struct timespec *limit)
{
	register const struct timespec *fourth __asm__("r10") = limit;
	long result;

	__asm__ volatile("mov %1, %%eax; syscall"
			 : "=a"(result)
			 : "i"(SYS_futex), "D"(word), "S"(FUTEX_WAIT), "d"(0), "r"(fourth)
			 : "rcx", "r11", "memory");
	if (result >= 0)
		return result;
	errno = (int)-result;
	return -1;
}

/* The call itself, and what follows so that the next one can wait there, too. */
static long wait_in(long kind)
{
	struct timespec moment = {.tv_nsec = MOMENT}, long_time = {.tv_sec = 1000};
	struct pollfd one = {.fd = READ_END, .events = POLLIN};
	struct itimerspec once = {.it_value = moment};
	struct epoll_event event;
	static const char pages[3 * 4096];
	struct actor *mine = &shared->actors[me];
	sigset_t set, before;
	fd_set ready;
	uint64_t value;
	long result;
	char byte;
	int fd;

	switch (kind) {
	case WAIT_READ:
	case WAIT_INTERRUPTED:
		return read(READ_END, &byte, 1);
	case WAIT_POLL:
		result = poll(&one, 1, -1);
		return result < 0 ? -1 : read(READ_END, &byte, 1) * 10 + result;
	case WAIT_PPOLL:
		result = ppoll(&one, 1, &long_time, NULL);
		return result < 0 ? -1 : read(READ_END, &byte, 1) * 10 + result;
	case WAIT_RECEIVE:
		return recv(LEFT, &byte, 1, 0);
	case WAIT_SELECT:
		FD_ZERO(&ready);
		FD_SET(LEFT % FD_SETSIZE, &ready);
		result = select(LEFT + 1, &ready, NULL, NULL, NULL);
		return result < 0 ? -1 : recv(LEFT, &byte, 1, 0) * 10 + result;
	case WAIT_EPOLL:
		result = epoll_wait(WATCHER, &event, 1, 1000000);
		return result < 0 ? -1 : read(COUNTER, &value, 8) * 10 + result;
	case WAIT_COUNTER:
		return read(COUNTER, &value, 8);
	case WAIT_WRITE:
		return write(FULL_WRITE, "", 1);
	case WAIT_WRITE_ON: /* a third of it fits */
		return write(PART_WRITE, pages, sizeof(pages));
	case WAIT_FLOCK:
		result = flock(WANTED, LOCK_EX);
		flock(WANTED, LOCK_UN);
		return result;
	case WAIT_RANGE:
		result = lock_range(WANTED, F_OFD_SETLKW, F_WRLCK);
		lock_range(WANTED, F_OFD_SETLK, F_UNLCK);
		return result;
	case WAIT_FUTEX:
		return futex_wait(&mine->word, NULL);
	case WAIT_FUTEX_LONG:
		return futex_wait(&mine->word, &long_time);
	case WAIT_SIGNAL:
		sigemptyset(&set);
		sigaddset(&set, SIGRTMIN + WAKES);
		return sigtimedwait(&set, NULL, &long_time) == SIGRTMIN + WAKES ? 0 : -1;
	case WAIT_SUSPEND:
		pthread_sigmask(SIG_SETMASK, NULL, &before);
		sigdelset(&before, SIGRTMIN + WAKES);
		return sigsuspend(&before);
	case WAIT_SLEEP:
		return nanosleep(&moment, NULL);
	case WAIT_UNTIL:
		clock_gettime(CLOCK_MONOTONIC, &long_time);
		long_time.tv_nsec += MOMENT;
		if (long_time.tv_nsec >= 1000000000) {
			long_time.tv_sec++;
			long_time.tv_nsec -= 1000000000;
		}
		return -clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &long_time, NULL);
	case WAIT_TIMER:
		fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
		timerfd_settime(fd, 0, &once, NULL);
		result = read(fd, &value, 8);
		close(fd);
		return result;
	case WAIT_POLL_MOMENT:
		return poll(NULL, 0, MOMENT / 1000000);
	default:
		return futex_wait(&mine->word, &moment);
	}
}

/* what for: the turn is the next one's at once */
void wait_for(const long *a)
{
	struct actor *mine = &shared->actors[me];
	long kind = a[0] % WAITS, result;
	sigset_t others, before;

	/* Whether another signal comes before or after its end would be chance. */
	sigfillset(&others);
	sigdelset(&others, SIGSEGV);
	sigdelset(&others, SIGBUS);
	if (kind == WAIT_INTERRUPTED)
		sigdelset(&others, SIGRTMIN + WAKES);
	pthread_sigmask(SIG_SETMASK, &others, &before);
	mine->kind = (int)kind;
	atomic_store(&mine->word, 0);
	atomic_store(&mine->back, 0);
	atomic_store(&mine->released, 0);
	if (kind == WAIT_RANGE)
		lock_range(HELD, F_OFD_SETLK, F_WRLCK);
	done();
	errno = 0;
	do
		result = wait_in(kind);
	/* Linux does not take them up again by itself after a stop (signal(7)). */
	while (result < 0 && errno == EINTR &&
	       (kind == WAIT_EPOLL || kind == WAIT_SIGNAL ||
		(kind == WAIT_PPOLL && personality(0xffffffff) & STICKY_TIMEOUTS)));
	/* The kernel itself ends it in its middle at a stop. */
	if (kind == WAIT_WRITE_ON && result > 0 && atomic_load(&shared->stopped))
		result = 0;
	mine->result = result >= 0				     ? result
		       : errno == EAGAIN && atomic_load(&mine->word) ? 0 /* it was woken before it slept */
								     : -errno;
	/* A call that ends by itself: until it is called upon, whether this takes signals again would be chance. */
	while (kind >= WAIT_SLEEP && !atomic_load(&mine->released))
		syscall(SYS_futex, &mine->released, FUTEX_WAIT, 0, NULL, NULL, 0);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	atomic_store(&mine->back, 1);
	syscall(SYS_futex, &mine->back, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* who: it is seen to that its call ends */
static long release(const long *a)
{
	struct actor *other = &shared->actors[a[0] % ACTORS];
	struct timespec moment = {.tv_nsec = 50000000};
	bool waits = !atomic_load(&other->back);
	static char page[4096];
	uint64_t value = 1;
	long written = 1, left = 0;

	if (waits)
		switch (other->kind) {
		case WAIT_READ:
		case WAIT_POLL:
		case WAIT_PPOLL:
			written = write(WRITE_END, "", 1);
			break;
		case WAIT_RECEIVE:
		case WAIT_SELECT:
			written = send(RIGHT, "", 1, 0);
			break;
		case WAIT_EPOLL:
		case WAIT_COUNTER:
			written = write(COUNTER, &value, 8);
			break;
		case WAIT_WRITE:
			written = read(FULL_READ, page, sizeof(page));
			break;
		case WAIT_FLOCK:
			flock(HELD, LOCK_UN);
			break;
		case WAIT_RANGE:
			lock_range(HELD, F_OFD_SETLK, F_UNLCK);
			break;
		case WAIT_SIGNAL:
		case WAIT_SUSPEND:
			syscall(SYS_tgkill, other->pid, other->tid, SIGRTMIN + WAKES);
			break;
		default:
			break;
		}
	atomic_store(&other->released, 1);
	syscall(SYS_futex, &other->released, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
	while (!atomic_load(&other->back)) {
		if (other->kind == WAIT_FUTEX || other->kind == WAIT_FUTEX_LONG) {
			atomic_store(&other->word, 1);
			syscall(SYS_futex, &other->word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
		}
		if (other->kind == WAIT_WRITE_ON) {
			left = read(PART_READ, page, sizeof(page));
			moment.tv_nsec = 1000000;
		}
		if (other->kind == WAIT_INTERRUPTED) /* again: it may not have been in the call yet */
			syscall(SYS_tgkill, other->pid, other->tid, SIGRTMIN + WAKES);
		syscall(SYS_futex, &other->back, FUTEX_WAIT, 0, &moment, NULL, 0);
	}
	if (other->kind == WAIT_WRITE && waits) { /* one byte lies there now */
		written = read(FULL_READ, page, 1);
		written = write(FULL_WRITE, page, sizeof(page));
	}
	while (other->kind == WAIT_WRITE_ON && read(PART_READ, page, sizeof(page)) > 0)
		;
	if (other->kind == WAIT_FLOCK && waits)
		flock(HELD, LOCK_EX);
	(void)left; /* nothing may be there yet */
	say(" of %ld: %ld", a[0] % ACTORS, other->result);
	return written < 0 ? -1 : 0;
}

const struct verb wait_verbs[] = {{"release", release}, {0}};
