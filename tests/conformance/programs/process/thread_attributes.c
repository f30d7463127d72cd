/* What a thread or process has been told about itself by prctl and its kin. */
#include "ready.h"

#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>

static struct {
	int death_signal, keep_capabilities, no_new_privileges, dumpable, subreaper, nice, policy, tsc;
	unsigned long slack, thp;
	int personality;
	cpu_set_t affinity;
	struct rlimit limits[RLIM_NLIMITS];
	int memory_policy, io_priority;
} before, after;

static void look(typeof(before) *at)
{
	memset(at, 0, sizeof *at);
	prctl(PR_GET_PDEATHSIG, &at->death_signal);
	prctl(PR_GET_TSC, &at->tsc);
	at->keep_capabilities = prctl(PR_GET_KEEPCAPS, 0, 0, 0, 0);
	at->no_new_privileges = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
	at->dumpable = prctl(PR_GET_DUMPABLE);
	prctl(PR_GET_CHILD_SUBREAPER, &at->subreaper);
	at->slack = (unsigned long)prctl(PR_GET_TIMERSLACK);
	at->thp = (unsigned long)prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0);
	at->nice = getpriority(PRIO_PROCESS, 0);
	at->policy = sched_getscheduler(0);
	at->personality = personality(0xffffffff);
	at->io_priority = (int)syscall(SYS_ioprio_get, 1, 0);
	sched_getaffinity(0, sizeof at->affinity, &at->affinity);
	for (int k = 0; k < RLIM_NLIMITS; k++)
		getrlimit((unsigned)k, &at->limits[k]);
}

#define SAME(field)                                                                                          \
	expect(before.field == after.field, #field ": %ld became %ld", (long)before.field, (long)after.field)

int main(void)
{
	begin();
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	prctl(PR_SET_TIMERSLACK, 123456);
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	setpriority(PRIO_PROCESS, 0, 7);
	sched_setscheduler(0, SCHED_BATCH, &(struct sched_param){0});
	cpu_set_t one;
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	sched_setaffinity(0, sizeof one, &one);
	setrlimit(RLIMIT_NOFILE, &(struct rlimit){200, 300});
	setrlimit(RLIMIT_CORE, &(struct rlimit){0, 1 << 20});
	setrlimit(RLIMIT_STACK, &(struct rlimit){4 << 20, 64 << 20});
	setrlimit(RLIMIT_MSGQUEUE, &(struct rlimit){4096, 8192});
	look(&before);
	ready_and_wait();

	look(&after);
	SAME(death_signal);
	SAME(keep_capabilities);
	SAME(no_new_privileges);
	SAME(dumpable);
	SAME(subreaper);
	SAME(slack);
	SAME(thp);
	SAME(nice);
	SAME(policy);
	SAME(personality);
	SAME(io_priority);
	SAME(tsc);
	expect(CPU_EQUAL(&before.affinity, &after.affinity), "processor affinity changed");
	for (int k = 0; k < RLIM_NLIMITS; k++)
		expect(before.limits[k].rlim_cur == after.limits[k].rlim_cur &&
			       before.limits[k].rlim_max == after.limits[k].rlim_max,
		       "limit %d: %lu/%lu became %lu/%lu", k, before.limits[k].rlim_cur,
		       before.limits[k].rlim_max, after.limits[k].rlim_cur, after.limits[k].rlim_max);
	return verdict();
}
