/* Fifty threads, each with its own thread-local values, counter, name, mask and robust list, woken in turn by a
 * condition variable; joined at the end, which needs the kernel to clear each one's TID. */
#include "ready.h"

#include <sys/prctl.h>

enum { COUNT = 50, TURNS = 200 };

static __thread uint64_t own[64];
static __thread int counter;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turn_changed = PTHREAD_COND_INITIALIZER;
static int turn = -1, arrived;
static pthread_mutex_t robust;

static void *work(void *argument)
{
	int number = (int)(intptr_t)argument;
	char name[16], name_after[16];
	void *list, *list_after;
	size_t size;
	pid_t tid = own_tid();
	sigset_t mask, mask_after;
	for (int k = 0; k < 64; k++)
		own[k] = (uint64_t)number << 32 | (uint64_t)k;
	sprintf(name, "worker %d", number);
	prctl(PR_SET_NAME, name);
	sigemptyset(&mask);
	sigaddset(&mask, GO);
	sigaddset(&mask, SIGRTMIN + number % 20);
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
	syscall(SYS_get_robust_list, 0, &list, &size);
	if (number == 0)
		pthread_mutex_lock(&robust);

	pthread_mutex_lock(&lock);
	arrived++;
	sleeps_in(tid, SYS_futex);
	for (int k = 0; k < TURNS; k++) {
		while (turn < 0 || turn % COUNT != number)
			pthread_cond_wait(&turn_changed, &lock);
		counter++;
		turn++;
		pthread_cond_broadcast(&turn_changed);
	}
	pthread_mutex_unlock(&lock);

	expect(counter == TURNS, "thread %d: counter is %d", number, counter);
	for (int k = 0; k < 64; k++)
		if (own[k] != ((uint64_t)number << 32 | (uint64_t)k)) {
			expect(false, "thread %d: thread-local value %d is %lx", number, k, own[k]);
			break;
		}
	prctl(PR_GET_NAME, name_after);
	expect(!strcmp(name, name_after), "thread %d: name became %s", number, name_after);
	pthread_sigmask(SIG_SETMASK, NULL, &mask_after);
	expect(!memcmp(&mask, &mask_after, 8), "thread %d: signal mask changed", number);
	syscall(SYS_get_robust_list, 0, &list_after, &size);
	expect(list == list_after, "thread %d: robust list moved from %p to %p", number, list, list_after);
	expect(own_tid() == tid, "thread %d: TID became %d", number, own_tid());
	return argument; /* thread 0 still holds the robust mutex */
}

int main(void)
{
	begin();
	pthread_t threads[COUNT];
	pthread_mutexattr_t attributes;
	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&robust, &attributes);
	for (int k = 0; k < COUNT; k++)
		pthread_create(&threads[k], NULL, work, (void *)(intptr_t)k);
	for (int all = 0; !all; sched_yield()) {
		pthread_mutex_lock(&lock);
		all = arrived == COUNT;
		pthread_mutex_unlock(&lock);
	}
	ready_and_wait();
	pthread_mutex_lock(&lock);
	turn = 0;
	pthread_cond_broadcast(&turn_changed);
	pthread_mutex_unlock(&lock);
	for (int k = 0; k < COUNT; k++) {
		void *result;
		int failed = pthread_join(threads[k], &result);
		expect(!failed && (int)(intptr_t)result == k, "joining thread %d failed", k);
	}
	int owner = pthread_mutex_lock(&robust);
	expect(owner == EOWNERDEAD, "the robust mutex of a dead thread: %s", strerror(owner));
	return verdict();
}
