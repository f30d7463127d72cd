/* The vDSO: its functions still work, at the address the program knows, and no clock runs backwards. */
#include "ready.h"

#include <elf.h>
#include <sys/auxv.h>
#include <sys/time.h>

static const clockid_t clocks[] = {CLOCK_REALTIME,	CLOCK_MONOTONIC,	CLOCK_BOOTTIME,
				   CLOCK_MONOTONIC_RAW, CLOCK_MONOTONIC_COARSE, CLOCK_TAI};
enum { COUNT = sizeof clocks / sizeof *clocks };

static volatile bool stop;
static volatile long rounds;

/* Spends its time inside the vDSO, so that the checkpoint is likely to meet it there. */
static void *ask(void *unused)
{
	long long last = 0;
	while (!stop) {
		long long now = now_ns(CLOCK_MONOTONIC);
		if (now < last)
			expect(false, "the clock ran back by %lld ns", last - now);
		last = now;
		rounds++;
	}
	return unused;
}

int main(void)
{
	begin();
	long long before[COUNT];
	const char *image = (const char *)getauxval(AT_SYSINFO_EHDR);
	pthread_t thread;
	pthread_create(&thread, NULL, ask, NULL);
	for (int k = 0; k < COUNT; k++)
		before[k] = now_ns(clocks[k]);
	time_t seconds = time(NULL);
	while (!rounds)
		sched_yield();
	ready_and_wait();

	for (int k = 0; k < COUNT; k++) {
		long long now = now_ns(clocks[k]);
		struct timespec by_call;
		syscall(SYS_clock_gettime, clocks[k], &by_call);
		long long called = by_call.tv_sec * 1000000000LL + by_call.tv_nsec, then = now_ns(clocks[k]);
		expect(now >= before[k], "clock %d ran back by %lld ns", clocks[k], before[k] - now);
		expect(called >= now - 20000000 && called <= then + 20000000,
		       "clock %d of the vDSO is %lld ns off", clocks[k], called - now);
	}
	struct timeval day;
	gettimeofday(&day, NULL);
	expect(day.tv_sec >= seconds && time(NULL) >= seconds, "gettimeofday or time ran back");
	unsigned cpu;
	expect(!getcpu(&cpu, NULL), "getcpu: %s", strerror(errno));
	expect(getauxval(AT_SYSINFO_EHDR) == (unsigned long)image && !memcmp(image, ELFMAG, SELFMAG),
	       "the vDSO is not where it was");
	long so_far = rounds;
	for (long long until = now_ns(CLOCK_MONOTONIC) + 60000000000LL;
	     rounds == so_far && now_ns(CLOCK_MONOTONIC) < until;)
		sched_yield();
	expect(rounds > so_far, "a thread that was asking the vDSO does not go on");
	stop = true;
	pthread_join(thread, NULL);
	return verdict();
}
