/* System calls that wait for a time, met halfway. Each must end as if nothing had happened: with the result of
 * a timeout, not early, and not later than the time it could not run: frozen, or without a processor. EINTR is right
 * only where the kernel gives it to a process that is stopped and continued (signal(7)). */
#include "ready.h"

#include <linux/futex.h>
#include <poll.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/personality.h>
#include <sys/select.h>
#include <sys/socket.h>

#define SECONDS(x) ((long long)((x) * 1e9))
static const long long LENGTH = SECONDS(1.2), SLACK = SECONDS(0.4);

static struct waiter {
	const char *name;
	void (*wait)(struct waiter *);
	bool may_be_interrupted; /* by a stop */
	bool has_no_rest;	 /* also by a wake: what is left of its time cannot be given to it */
	bool was_interrupted;
	long result, wanted;
	int error, wanted_error;
	long long begun, ended, unserved;
} waiters[];

static int quiet_pipe[2], quiet_epoll;
static int word_to_wait_on;

static struct timespec spec(long long ns)
{
	return (struct timespec){ns / 1000000000, ns % 1000000000};
}

static struct timespec left(struct waiter *me)
{
	long long rest = me->begun + LENGTH - now_ns(CLOCK_MONOTONIC);
	return spec(rest > 0 ? rest : 0);
}

static void result(struct waiter *me, long value)
{
	me->result = value;
	me->error = value < 0 ? errno : 0;
}

static void sleep_relative(struct waiter *me)
{
	struct timespec t = spec(LENGTH);
	result(me, syscall(SYS_nanosleep, &t, NULL));
}
static void sleep_with_rest(struct waiter *me)
{
	struct timespec t = spec(LENGTH), rest = {-1, -1};
	result(me, syscall(SYS_nanosleep, &t, &rest));
}
static void sleep_clock_relative(struct waiter *me)
{
	struct timespec t = spec(LENGTH);
	result(me, syscall(SYS_clock_nanosleep, CLOCK_REALTIME, 0, &t, NULL));
}
static void sleep_absolute(struct waiter *me)
{
	struct timespec t = spec(me->begun + LENGTH);
	result(me, syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL));
}
static void poll_nothing(struct waiter *me)
{
	result(me, syscall(SYS_poll, NULL, 0, (int)(LENGTH / 1000000)));
}
static void poll_pipe(struct waiter *me)
{
	struct pollfd set = {.fd = quiet_pipe[0], .events = POLLIN};
	result(me, syscall(SYS_poll, &set, 1, (int)(LENGTH / 1000000)));
}
static void ppoll_pipe(struct waiter *me)
{
	struct pollfd set = {.fd = quiet_pipe[0], .events = POLLIN};
	struct timespec t = spec(LENGTH);
	uint64_t mask = 1UL << (SIGTERM - 1) | 1UL << (GO - 1), mask_after = 0;
	result(me, syscall(SYS_ppoll, &set, 1, &t, &mask, 8));
	syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &mask_after, 8);
	expect(mask_after == 1UL << (GO - 1), "ppoll left the mask %lx behind", mask_after);
}
static void select_pipe(struct waiter *me)
{
	fd_set set;
	FD_ZERO(&set);
	FD_SET(quiet_pipe[0], &set);
	struct timeval t = {LENGTH / 1000000000, LENGTH % 1000000000 / 1000};
	result(me, syscall(SYS_select, quiet_pipe[0] + 1, &set, NULL, NULL, &t));
}
static void pselect_pipe(struct waiter *me)
{
	fd_set set;
	FD_ZERO(&set);
	FD_SET(quiet_pipe[0], &set);
	struct timespec t = spec(LENGTH);
	uint64_t mask = 1UL << (GO - 1);
	struct {
		uint64_t *mask;
		size_t size;
	} sixth = {&mask, 8};
	result(me, syscall(SYS_pselect6, quiet_pipe[0] + 1, &set, NULL, NULL, &t, &sixth));
}
static void epoll_nothing(struct waiter *me)
{
	struct epoll_event event;
	struct timespec t = left(me);
	result(me, syscall(SYS_epoll_wait, quiet_epoll, &event, 1,
			   (int)(t.tv_sec * 1000 + (t.tv_nsec + 999999) / 1000000)));
}
static void futex_relative(struct waiter *me)
{
	struct timespec t = spec(LENGTH);
	result(me, syscall(SYS_futex, &word_to_wait_on, FUTEX_WAIT_PRIVATE, 0, &t, NULL, 0));
}
static void futex_absolute(struct waiter *me)
{
	struct timespec t = spec(me->begun + LENGTH);
	result(me, syscall(SYS_futex, &word_to_wait_on, FUTEX_WAIT_BITSET_PRIVATE, 0, &t, NULL,
			   FUTEX_BITSET_MATCH_ANY));
}
static void condition(struct waiter *me)
{
	pthread_cond_t never;
	pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	pthread_condattr_t attributes;
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&never, &attributes);
	struct timespec t = spec(me->begun + LENGTH);
	pthread_mutex_lock(&lock);
	errno = pthread_cond_timedwait(&never, &lock, &t);
	result(me, errno ? -1 : 0);
}
static void semaphore(struct waiter *me)
{
	sem_t never;
	sem_init(&never, 0, 0);
	struct timespec t = spec(me->begun + LENGTH);
	result(me, sem_clockwait(&never, CLOCK_MONOTONIC, &t));
}
static void signal_wait(struct waiter *me)
{
	uint64_t set = 1UL << (SIGWINCH - 1);
	struct timespec t = left(me);
	result(me, syscall(SYS_rt_sigtimedwait, &set, NULL, &t, 8));
}
static void receive(struct waiter *me)
{
	int pair[2];
	char byte;
	struct timespec t = left(me);
	struct timeval v = {t.tv_sec, t.tv_nsec / 1000 + 1};
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		give_up("socketpair");
	setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &v, sizeof v);
	result(me, syscall(SYS_recvfrom, pair[0], &byte, 1, 0, NULL, NULL));
	close(pair[0]);
	close(pair[1]);
}


/* The kernel does not write back the rest of the time to a thread with this personality, or to what cannot be written,
 * and then ends the call with EINTR. */
static void stick(void)
{
	personality((unsigned long)personality(0xffffffff) | STICKY_TIMEOUTS);
}
static void ppoll_sticky(struct waiter *me)
{
	struct pollfd set = {.fd = quiet_pipe[0], .events = POLLIN};
	struct timespec t = left(me);
	stick();
	result(me, syscall(SYS_ppoll, &set, 1, &t, NULL, 8));
}
static void select_sticky(struct waiter *me)
{
	fd_set set;
	FD_ZERO(&set);
	FD_SET(quiet_pipe[0], &set);
	struct timespec t = left(me);
	struct timeval v = {t.tv_sec, t.tv_nsec / 1000 + 1};
	stick();
	result(me, syscall(SYS_select, quiet_pipe[0] + 1, &set, NULL, NULL, &v));
}
static void pselect_constant(struct waiter *me)
{
	fd_set set;
	FD_ZERO(&set);
	FD_SET(quiet_pipe[0], &set);
	struct timespec t = left(me), *constant;
	constant = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (constant == MAP_FAILED)
		give_up("mmap");
	*constant = t;
	mprotect(constant, 4096, PROT_READ);
	result(me, syscall(SYS_pselect6, quiet_pipe[0] + 1, &set, NULL, NULL, constant, NULL));
}

static struct waiter waiters[] = {
	{.name = "nanosleep", .wait = sleep_relative},
	{.name = "nanosleep with a rest", .wait = sleep_with_rest},
	{.name = "clock_nanosleep", .wait = sleep_clock_relative},
	{.name = "clock_nanosleep to a moment", .wait = sleep_absolute},
	{.name = "poll of nothing", .wait = poll_nothing},
	{.name = "poll", .wait = poll_pipe},
	{.name = "ppoll", .wait = ppoll_pipe},
	{.name = "select", .wait = select_pipe},
	{.name = "pselect", .wait = pselect_pipe},
	{.name = "epoll_wait", .wait = epoll_nothing, .may_be_interrupted = true},
	{.name = "futex", .wait = futex_relative, .wanted = -1, .wanted_error = ETIMEDOUT},
	{.name = "futex to a moment",
	 .wait = futex_absolute,
	 .wanted = -1,
	 .wanted_error = ETIMEDOUT},
	{.name = "condition", .wait = condition, .wanted = -1, .wanted_error = ETIMEDOUT},
	{.name = "semaphore", .wait = semaphore, .wanted = -1, .wanted_error = ETIMEDOUT},
	{.name = "sigtimedwait",
	 .wait = signal_wait,
	 .may_be_interrupted = true,
	 .wanted = -1,
	 .wanted_error = EAGAIN},
	{.name = "recv with a timeout",
	 .wait = receive,
	 .may_be_interrupted = true,
	 .has_no_rest = true,
	 .wanted = -1,
	 .wanted_error = EAGAIN},
	{.name = "ppoll that sticks", .wait = ppoll_sticky, .may_be_interrupted = true},
	{.name = "select that sticks", .wait = select_sticky, .may_be_interrupted = true},
	{.name = "pselect to a constant", .wait = pselect_constant, .may_be_interrupted = true},
};
enum { COUNT = sizeof waiters / sizeof *waiters };

/* Nanoseconds for which this thread was to run, and had no processor. */
static long long unserved(void)
{
	FILE *file = fopen("/proc/thread-self/schedstat", "re");
	long long waited = 0;
	if (file && fscanf(file, "%*d %lld", &waited) != 1)
		waited = 0;
	if (file)
		fclose(file);
	return waited;
}

static void *run(void *argument)
{
	struct waiter *me = argument;
	__atomic_store_n(&me->begun, now_ns(CLOCK_MONOTONIC), __ATOMIC_SEQ_CST);
	for (me->wait(me); me->may_be_interrupted && me->error == EINTR; me->wait(me))
		me->was_interrupted = true;
	me->ended = now_ns(CLOCK_MONOTONIC);
	me->unserved = unserved();
	return NULL;
}

int main(void)
{
	begin();
	if (pipe2(quiet_pipe, O_CLOEXEC) || (quiet_epoll = epoll_create1(EPOLL_CLOEXEC)) < 0)
		give_up("pipe, epoll");
	pthread_t threads[COUNT];
	for (int k = 0; k < COUNT; k++)
		pthread_create(&threads[k], NULL, run, &waiters[k]);
	long long last = 0;
	for (int k = 0; k < COUNT; k++) {
		long long begun;
		while (!(begun = __atomic_load_n(&waiters[k].begun, __ATOMIC_SEQ_CST)))
			sched_yield();
		last = begun > last ? begun : last;
	}
	/* Half the time passes first, so that a call that is begun anew would end visibly too late. */
	struct timespec half = spec(LENGTH / 2), end = spec(last + LENGTH);
	nanosleep(&half, NULL);
	struct word word = ready_and_wait();
	/* A call that nobody disturbs shows how late the machine is: no other can be told to be later by then. */
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, NULL);
	long long lateness = now_ns(CLOCK_MONOTONIC) - last - LENGTH;
	long long allowed = (lateness > word.frozen ? lateness : word.frozen) + SLACK;
	for (int k = 0; k < COUNT; k++) {
		struct waiter *w = &waiters[k];
		pthread_join(threads[k], NULL);
		long long took = w->ended - w->begun;
		expect(w->result == w->wanted && w->error == w->wanted_error, "%s: returned %ld (%s)",
		       w->name, w->result, w->error ? strerror(w->error) : "no error");
		expect(!w->was_interrupted || w->has_no_rest || !word.killed, "%s: a wake ended it with EINTR",
		       w->name);
		expect(took >= LENGTH, "%s: ended %lld ms early", w->name, (LENGTH - took) / 1000000);
		expect(took <= LENGTH + allowed + w->unserved, "%s: ended %lld ms late (frozen for %lld ms)", w->name,
		       (took - LENGTH - word.frozen) / 1000000, word.frozen / 1000000);
	}
	return verdict();
}
