/* A program that watches itself: threads that compute, sleep, talk and wait, and check each result. What they have
 * done is counted in a mapped file, so that one can see from outside that every one of them goes on. */
#include "ready.h"

#include <poll.h>
#include <sys/epoll.h>

#ifndef CHILDREN
#define CHILDREN 0
#endif
#ifndef REST /* in nanoseconds */
#define REST 200000
#endif

enum { WORKERS = 7, WINDOW = 64 << 10, WINDOWS = 32, DESCRIPTORS = 64 };

static struct progress {
	volatile uint64_t stop;
	struct {
		volatile uint64_t counters[8];
		volatile char fault[192];
	} process[4];
} *progress;

static int me;

__attribute__((format(printf, 1, 2))) static void wrong(const char *format, ...)
{
	char text[192];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	if (!*progress->process[me].fault)
		memcpy((char *)progress->process[me].fault, text, sizeof text);
	expect(false, "%s", text);
}

/* What was done is counted, and the next thing comes a little later: a hunt needs some processor time, too. */
static void count(int worker)
{
	const struct timespec rest = {0, REST};
	progress->process[me].counters[worker]++;
	nanosleep(&rest, NULL);
}

static uint64_t noise(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9UL;
	return x ^ x >> 31;
}

static void *remember(void *unused)
{
	static uint64_t memory[WINDOWS][WINDOW / 8];
	uint64_t seeds[WINDOWS];
	for (int k = 0; k < WINDOWS; k++) {
		seeds[k] = (uint64_t)k << 40;
		for (int word = 0; word < WINDOW / 8; word++)
			memory[k][word] = noise(seeds[k] + (uint64_t)word);
	}
	for (int k = 0; !progress->stop; k = (k + 1) % WINDOWS) {
		for (int word = 0; word < WINDOW / 8; word++)
			if (memory[k][word] != noise(seeds[k] + (uint64_t)word))
				wrong("memory changed at window %d", k);
		seeds[k] += 0x1234567;
		for (int word = 0; word < WINDOW / 8; word++)
			memory[k][word] = noise(seeds[k] + (uint64_t)word);
		count(0);
	}
	return unused;
}

static void *compute(void *unused)
{
	while (!progress->stop) {
		uint64_t in[24], out[24];
		for (int k = 0; k < 24; k++)
			in[k] = noise((uint64_t)k * 77);
		__asm__ volatile("movups 0(%[in]), %%xmm0\n\t"
				 "movups 16(%[in]), %%xmm5\n\t"
				 "movups 32(%[in]), %%xmm15\n\t"
				 "mov 48(%[in]), %%r8\n\t"
				 "mov 56(%[in]), %%r9\n\t"
				 "mov 64(%[in]), %%r10\n\t"
				 "mov 72(%[in]), %%r12\n\t"
				 "mov 80(%[in]), %%r13\n\t"
				 "mov 88(%[in]), %%r14\n\t"
				 "mov 96(%[in]), %%rbx\n\t"
				 "mov $20000, %%eax\n"
				 "1:\n\t"
				 "mov %%r8, -16(%%rsp)\n\t" /* the red zone is ours too */
				 "mov -16(%%rsp), %%r8\n\t"
				 "dec %%eax\n\t"
				 "jnz 1b\n\t"
				 "movups %%xmm0, 0(%[out])\n\t"
				 "movups %%xmm5, 16(%[out])\n\t"
				 "movups %%xmm15, 32(%[out])\n\t"
				 "mov %%r8, 48(%[out])\n\t"
				 "mov %%r9, 56(%[out])\n\t"
				 "mov %%r10, 64(%[out])\n\t"
				 "mov %%r12, 72(%[out])\n\t"
				 "mov %%r13, 80(%[out])\n\t"
				 "mov %%r14, 88(%[out])\n\t"
				 "mov %%rbx, 96(%[out])\n\t"
				 :
				 : [in] "r"(in), [out] "r"(out)
				 : "rax", "rbx", "r8", "r9", "r10", "r12", "r13", "r14", "xmm0", "xmm5", "xmm15",
				   "memory", "cc");
		if (memcmp(in, out, 104))
			wrong("a register changed");
		count(1);
	}
	return unused;
}

static void *sleep_shortly(void *unused)
{
	while (!progress->stop) {
		const struct timespec nap = {0, 300000};
		long long begun = now_ns(CLOCK_MONOTONIC);
		if (nanosleep(&nap, NULL))
			wrong("nanosleep: %s", strerror(errno));
		if (now_ns(CLOCK_MONOTONIC) - begun < 300000)
			wrong("a sleep was too short");
		count(2);
	}
	return unused;
}

static int forth[2], back[2];

static void *ask(void *unused)
{
	for (uint64_t number = 1, answer; !progress->stop; number++) {
		if (write(forth[1], &number, 8) != 8)
			wrong("write: %s", strerror(errno));
		if (read(back[0], &answer, 8) != 8 || answer != noise(number))
			wrong("read: %s", strerror(errno));
		count(3);
	}
	close(forth[1]);
	return unused;
}

static void *answer(void *unused)
{
	uint64_t number;
	ssize_t got;
	while ((got = read(forth[0], &number, 8)) == 8) {
		number = noise(number);
		if (write(back[1], &number, 8) != 8)
			wrong("write: %s", strerror(errno));
		count(4);
	}
	if (got)
		wrong("read: %s", strerror(errno));
	return unused;
}

static void *wait_shortly(void *unused)
{
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event event;
	while (!progress->stop) {
		if (poll(NULL, 0, 1))
			wrong("poll: %s", strerror(errno));
		if (epoll_wait(epoll, &event, 1, 1) && errno != EINTR)
			wrong("epoll_wait: %s", strerror(errno));
		count(5);
	}
	close(epoll);
	return unused;
}

static void *signal_oneself(void *unused)
{
	static char stack[65536];
	stack_t before = {.ss_sp = stack, .ss_size = sizeof stack}, after;
	sigset_t mask, mask_after, pending, queued;
	const struct timespec none = {0, 0};
	sigaltstack(&before, NULL);
	sigfillset(&mask);
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	sigemptyset(&queued);
	sigaddset(&queued, SIGRTMIN + 9);
	for (int number = 0; !progress->stop; number++) {
		siginfo_t info;
		pthread_sigqueue(pthread_self(), SIGRTMIN + 9, (union sigval){.sival_int = number});
		int got;
		while ((got = sigtimedwait(&queued, &info, &none)) < 0 && errno == EINTR)
			continue;
		if (got != SIGRTMIN + 9 || info.si_int != number)
			wrong("signal %d came with %d", got, info.si_int);
		sigpending(&pending);
		for (int other = 1; other <= 64; other++)
			if (other != GO && sigismember(&pending, other))
				wrong("signal %d is pending", other);
		pthread_sigmask(SIG_SETMASK, NULL, &mask_after);
		if (memcmp(&mask, &mask_after, 8))
			wrong("the signal mask changed");
		sigaltstack(NULL, &after);
		if (after.ss_sp != stack || after.ss_size != sizeof stack || after.ss_flags)
			wrong("the alternate stack changed");
		count(6);
	}
	return unused;
}

static void caught(int number)
{
	wrong("signal %d was delivered", number);
}

static uint64_t descriptors(void)
{
	uint64_t open = 0;
	for (int fd = 0; fd < DESCRIPTORS; fd++)
		if (fcntl(fd, F_GETFD) >= 0)
			open |= 1UL << fd;
	return open;
}

static void *(*const workers[WORKERS])(void *) = {remember, compute,	  sleep_shortly, ask,
						  answer,   wait_shortly, signal_oneself};

static void work(bool is_root)
{
	pthread_t threads[WORKERS];
	if (pipe2(forth, O_CLOEXEC) || pipe2(back, O_CLOEXEC))
		give_up("pipe");
	for (int k = 0; k < WORKERS; k++)
		pthread_create(&threads[k], NULL, workers[k], NULL);
	while (!progress->process[me].counters[5])
		sched_yield(); /* its epoll set is open */
	uint64_t open = descriptors();
	sigset_t go, blocked;
	sigemptyset(&go);
	sigaddset(&go, GO);
	const struct timespec soon = {0, 1000000};
	if (is_root)
		ready();
	while (!progress->stop) {
		siginfo_t info;
		if (sigtimedwait(&go, &info, &soon) == GO)
			progress->stop = 1;
		uint64_t now = descriptors();
		if (progress->stop)
			break; /* another process said so: the workers are closing theirs */
		if (now != open)
			wrong("the open descriptors are %lx, not %lx", now, open);
		pid_t stranger = waitpid(-1, NULL, WNOHANG);
		bool has_children = CHILDREN && is_root;
		if (has_children ? stranger != 0 : stranger != -1)
			wrong("there is a strange child, %d", stranger);
		pthread_sigmask(SIG_SETMASK, NULL, &blocked);
		if (!sigismember(&blocked, GO))
			wrong("the signal mask changed");
		count(7);
	}
	for (int k = 0; k < WORKERS; k++)
		pthread_join(threads[k], NULL);
}

int main(void)
{
	begin();
	int fd = open(in_dir("progress"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, sizeof *progress))
		give_up("progress");
	progress = mmap(NULL, sizeof *progress, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
#ifdef CATCH
	/* With every harmless signal caught, nobody can be sent one unnoticed. */
	const int harmless[] = {SIGURG, SIGWINCH, SIGCHLD, SIGCONT};
	for (int k = 0; k < 4; k++)
		signal(harmless[k], caught);
#else
	(void)caught;
#endif
#ifdef HOLDS
	hold();
#endif
	pid_t children[CHILDREN + 1];
	for (int k = 0; k < CHILDREN; k++) {
		children[k] = fork();
		if (!children[k]) {
			me = k + 1;
			work(false);
			return *faults ? 1 : 0;
		}
	}
	work(true);
	signal(SIGCHLD, SIG_DFL);
	for (int k = 0; k < CHILDREN; k++) {
		int status;
		waitpid(children[k], &status, 0);
		expect(!status, "child %d: %s", k + 1, progress->process[k + 1].fault);
	}
#ifdef HOLDS
	still_held();
#endif
	return verdict();
}
