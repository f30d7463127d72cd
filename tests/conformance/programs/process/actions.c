/* What happens on a signal: all 64 actions as the kernel keeps them, with flags, mask and restorer, alternate
 * stacks per thread, and a thread that is frozen inside a handler on its alternate stack. */
#include "ready.h"

struct kernel_action {
	void *handler;
	unsigned long flags;
	void *restorer;
	uint64_t mask;
};

static struct kernel_action before[65];
static volatile int calls, depth_reached, leave_handler;
static volatile uintptr_t handler_stack;
static volatile siginfo_t seen;

static struct kernel_action action_of(int number)
{
	struct kernel_action action = {0};
	syscall(SYS_rt_sigaction, number, NULL, &action, 8);
	return action;
}

static void count(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	char here;
	handler_stack = (uintptr_t)&here;
	seen = *info;
	calls++;
}

static void linger(int number)
{
	(void)number;
	double kept[8];
	for (int k = 0; k < 8; k++)
		kept[k] = k * 1.25;
	depth_reached = 1;
	while (!leave_handler)
		usleep(1000);
	for (int k = 0; k < 8; k++)
		expect(kept[k] == k * 1.25, "a local of the frozen handler changed");
}

static char stacks[2][65536];

static bool within(const char *stack, uintptr_t address)
{
	return address >= (uintptr_t)stack && address < (uintptr_t)stack + 65536;
}

static void *thread(void *unused)
{
	stack_t mine = {.ss_sp = stacks[1], .ss_size = sizeof stacks[1]}, now;
	sigaltstack(&mine, NULL);
	sigset_t mask, mask_after;
	sigemptyset(&mask);
	sigaddset(&mask, GO);
	sigaddset(&mask, SIGWINCH);
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
	pthread_kill(pthread_self(), SIGRTMIN + 7); /* lingers in its handler, on the alternate stack */
	pthread_sigmask(SIG_SETMASK, NULL, &mask_after);
	expect(!memcmp(&mask, &mask_after, 8), "the mask after the handler is not the one before");
	sigaltstack(NULL, &now);
	expect(now.ss_sp == mine.ss_sp && now.ss_size == mine.ss_size && !now.ss_flags,
	       "the thread's alternate stack became %p, %zu bytes, flags %d", now.ss_sp, now.ss_size,
	       now.ss_flags);
	return unused;
}

int main(void)
{
	begin();
	stack_t mine = {.ss_sp = stacks[0], .ss_size = sizeof stacks[0], .ss_flags = (int)(1U << 31)}, now;
	sigaltstack(&mine, NULL); /* SS_AUTODISARM */
	struct sigaction action = {.sa_sigaction = count, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	sigaddset(&action.sa_mask, SIGTERM);
	sigaddset(&action.sa_mask, 64);
	sigaction(SIGUSR1, &action, NULL);
	action.sa_flags = SA_SIGINFO | SA_RESTART | SA_NODEFER;
	sigaction(SIGRTMIN + 5, &action, NULL);
	action.sa_flags = SA_SIGINFO | SA_RESETHAND;
	sigaction(SIGRTMIN + 6, &action, NULL);
	struct sigaction lingering = {.sa_handler = linger, .sa_flags = SA_ONSTACK};
	sigaction(SIGRTMIN + 7, &lingering, NULL);
	signal(SIGTRAP, linger);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	struct sigaction child = {.sa_handler = SIG_DFL, .sa_flags = SA_NOCLDSTOP | SA_NOCLDWAIT};
	sigaction(SIGCHLD, &child, NULL);
	pthread_t other;
	pthread_create(&other, NULL, thread, NULL);
	while (!depth_reached)
		sched_yield();
	for (int number = 1; number <= 64; number++)
		before[number] = action_of(number);
	ready_and_wait();

	for (int number = 1; number <= 64; number++) {
		struct kernel_action after = action_of(number), *was = &before[number];
		expect(!memcmp(was, &after, sizeof after),
		       "signal %d: %p flags %lx restorer %p mask %lx became %p flags %lx restorer %p mask "
		       "%lx",
		       number, was->handler, was->flags, was->restorer, was->mask, after.handler, after.flags,
		       after.restorer, after.mask);
	}
	sigaltstack(NULL, &now);
	expect(now.ss_sp == mine.ss_sp && now.ss_size == mine.ss_size && now.ss_flags == mine.ss_flags,
	       "the alternate stack became %p, %zu bytes, flags %x", now.ss_sp, now.ss_size, now.ss_flags);
	raise(SIGUSR1);
	expect(calls == 1 && within(stacks[0], handler_stack),
	       "SIGUSR1's handler did not run on the alternate stack");
	expect(seen.si_signo == SIGUSR1 && seen.si_pid == getpid(), "SIGUSR1 came with the wrong siginfo");
	raise(SIGRTMIN + 5);
	expect(calls == 2 && !within(stacks[0], handler_stack),
	       "a handler without SA_ONSTACK ran on the wrong stack");
	raise(SIGRTMIN + 6);
	expect(calls == 3 && action_of(SIGRTMIN + 6).handler == SIG_DFL, "SA_RESETHAND did not reset");
	raise(SIGPIPE);
	leave_handler = 1;
	pthread_join(other, NULL);
	pid_t pid = fork();
	if (!pid)
		_exit(0);
	expect(waitpid(pid, NULL, 0) == -1 && errno == ECHILD, "SA_NOCLDWAIT was lost");
	return verdict();
}
