/* Threads that fault again and again, so that the processor's signal is queued when they are frozen: it is handled
 * once, at the instruction that caused it. */
#include "ready.h"

#include <setjmp.h>
#include <ucontext.h>

enum { KINDS = 5 };

static const int kinds[KINDS] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
static volatile bool stop;
static volatile unsigned long count[KINDS];
static __thread sigjmp_buf back;
static __thread volatile int mine;
static char *nowhere, *behind;

static void handler(int number, siginfo_t *info, void *context)
{
	(void)context;
	expect(number == kinds[mine], "signal %d comes to the thread of %d", number, kinds[mine]);
	expect(info->si_code > 0, "signal %d has the code %d", number, info->si_code);
	if (number == SIGSEGV)
		expect(info->si_addr == nowhere, "SIGSEGV at %p", info->si_addr);
	siglongjmp(back, 1);
}

static void fault(int kind)
{
	switch (kind) {
	case 0:
		*(volatile char *)nowhere = 1;
		break;
	case 1:
		*(volatile char *)behind = 1;
		break;
	case 2:
		__asm__ volatile("ud2");
		break;
	case 3:
		__asm__ volatile("divl %k0" : : "r"(0) : "eax", "edx", "cc");
		break;
	default:
		__asm__ volatile("int3");
	}
	expect(false, "an instruction that faults was left: kind %d", kind);
}

static void *thread(void *kind)
{
	mine = (int)(intptr_t)kind;
	while (!stop) {
		if (!sigsetjmp(back, 1))
			fault(mine);
		count[mine]++;
	}
	return NULL;
}

int main(void)
{
	begin();
	struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
	for (int k = 0; k < KINDS; k++)
		sigaction(kinds[k], &action, NULL);
	int fd = open(in_dir("behind"), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	nowhere = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	behind = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	pthread_t threads[KINDS];
	for (intptr_t k = 0; k < KINDS; k++)
		pthread_create(&threads[k], NULL, thread, (void *)k);
	ready_and_wait();

	for (int k = 0; k < KINDS; k++)
		for (unsigned long before = count[k]; count[k] < before + 100;)
			sched_yield();
	stop = true;
	for (int k = 0; k < KINDS; k++)
		pthread_join(threads[k], NULL);
	return verdict();
}
