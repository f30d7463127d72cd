/* What few threads are told: scheduling in real time (as far as the user may), I/O priority, personality, memory policy,
 * faulting counters, mitigations of speculation, merging of pages, slices of time, keeping capabilities. Each thread has
 * its own. And the nice value that a session has as a whole, and the memory that is left out of the merging. */
#include "ready.h"

#include <sys/personality.h>
#include <sys/prctl.h>

#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#define PR_GET_MEMORY_MERGE 68
#endif
#define PR_THP_DISABLE_EXCEPT_ADVISED 2

struct habits {
	int policy, priority, io_priority, personality, memory_mode, tsc, cpuid, memory_failure, slack, merge, thp, slice, securebits;
	int speculation[3];
	unsigned long nodes[16];
};
static struct habits before[3], after[3];
static pthread_barrier_t told, looked;

/* struct sched_attr, which not every C library has */
struct attributes {
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime, deadline, period;
};

static struct attributes attributes(void)
{
	struct attributes found = {0};
	syscall(SYS_sched_getattr, 0, &found, sizeof found, 0);
	return found;
}

/* Linux 6.12 */
static void choose_slice(uint64_t nanoseconds)
{
	struct attributes wanted = attributes();
	wanted.runtime = nanoseconds;
	syscall(SYS_sched_setattr, 0, &wanted, 0);
}

/* The nice value of a process's session, as text; empty where the kernel groups no sessions. */
static void look_at_session(pid_t pid, char *nice)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/autogroup", (int)pid);
	FILE *file = fopen(path, "re");
	if (!file || fscanf(file, "%*s nice %15s", nice) != 1)
		*nice = 0;
	if (file)
		fclose(file);
}

/* A child with a session that is nicer than others. */
static pid_t nicer_session(void)
{
	int ends[2];
	char done;
	if (pipe(ends))
		give_up("pipe");
	pid_t child = fork();
	if (!child) {
		setsid();
		int fd = open("/proc/self/autogroup", O_WRONLY);
		while (fd >= 0 && write(fd, "5", 1) < 0 && errno == EAGAIN) /* one in 100 ms on the whole host */
			usleep(1000);
		close(fd);
		close(ends[0]);
		close(ends[1]);
		pause();
		_exit(1);
	}
	close(ends[1]);
	while (read(ends[0], &done, 1) > 0)
		continue;
	close(ends[0]);
	return child;
}

/* Whether the kernel may merge the page at an address with others. */
static bool is_merged(const void *address)
{
	unsigned long start, end;
	bool inside = false, found = false;
	char line[4096];
	FILE *file = fopen("/proc/self/smaps", "re");
	while (file && fgets(line, sizeof line, file)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			inside = start <= (uintptr_t)address && (uintptr_t)address < end;
		else if (inside && !strncmp(line, "VmFlags:", 8))
			found = strstr(line, " mg");
	}
	fclose(file);
	return found;
}

static void look(struct habits *at)
{
	struct sched_param parameters;
	memset(at, 0, sizeof *at);
	at->policy = sched_getscheduler(0);
	sched_getparam(0, &parameters);
	at->priority = parameters.sched_priority;
	at->io_priority = (int)syscall(SYS_ioprio_get, 1, 0);
	at->personality = personality(0xffffffff);
	syscall(SYS_get_mempolicy, &at->memory_mode, at->nodes, 1024, 0, 0);
	prctl(PR_GET_TSC, &at->tsc);
	at->cpuid = (int)syscall(SYS_arch_prctl, 0x1011, 0);
	at->memory_failure = prctl(PR_MCE_KILL_GET, 0, 0, 0, 0);
	at->slack = prctl(PR_GET_TIMERSLACK);
	at->merge = prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0);
	at->slice = at->policy == SCHED_OTHER ? (int)attributes().runtime : 0;
	at->thp = prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0);
	at->securebits = prctl(PR_GET_SECUREBITS);
	for (int k = 0; k < 3; k++)
		at->speculation[k] = prctl(PR_GET_SPECULATION_CTRL, k, 0, 0, 0);
}

#define SAME(field)                                                                                                    \
	expect(before[n].field == after[n].field, "thread %d: " #field ": %#x became %#x", n,                          \
	       (unsigned)before[n].field, (unsigned)after[n].field)

static void compare(int n)
{
	look(&after[n]);
	SAME(policy);
	SAME(priority);
	SAME(io_priority);
	SAME(personality);
	SAME(memory_mode);
	SAME(tsc);
	SAME(cpuid);
	SAME(memory_failure);
	SAME(slack);
	SAME(merge);
	SAME(thp);
	SAME(slice);
	SAME(securebits);
	for (int k = 0; k < 3; k++)
		SAME(speculation[k]);
	expect(!memcmp(before[n].nodes, after[n].nodes, sizeof before[n].nodes), "thread %d: its nodes changed", n);
}

static void *thread(void *argument)
{
	int n = (int)(intptr_t)argument;
	unsigned long node = 1;
	if (n == 1) {
		sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &(struct sched_param){7});
		syscall(SYS_ioprio_set, 1, 0, 3 << 13);	  /* idle */
		syscall(SYS_set_mempolicy, 2, &node, 64); /* bind to node 0 */
		prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0);
		prctl(PR_SET_TIMERSLACK, 1);
		prctl(PR_SET_KEEPCAPS, 1);
	} else {
		sched_setscheduler(0, SCHED_IDLE, &(struct sched_param){0});
		syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 6);	    /* best effort */
		syscall(SYS_set_mempolicy, 3 | 1 << 15, &node, 64); /* interleaved, static nodes */
		prctl(PR_SET_TSC, PR_TSC_SIGSEGV);
		syscall(SYS_arch_prctl, 0x1012, 0); /* CPUID faults, where the processor can */
		for (int k = 0; k < 2; k++)
			prctl(PR_SET_SPECULATION_CTRL, k, PR_SPEC_DISABLE, 0, 0);
	}
	look(&before[n]);
	pthread_barrier_wait(&told);
	pthread_barrier_wait(&looked);
	compare(n);
	return NULL;
}

int main(void)
{
	begin();
	personality(ADDR_NO_RANDOMIZE);
	prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0);
	char *pages = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	madvise(pages, PAGE, MADV_UNMERGEABLE);
	bool merged[] = {is_merged(pages), is_merged(pages + PAGE)};
	prctl(PR_SET_THP_DISABLE, 1, PR_THP_DISABLE_EXCEPT_ADVISED, 0, 0);
	char nice[16], nice_now[16];
	pid_t child = nicer_session();
	look_at_session(child, nice);
	choose_slice(5000000);
	pthread_barrier_init(&told, NULL, 3);
	pthread_barrier_init(&looked, NULL, 3);
	pthread_t made[2];
	for (intptr_t k = 0; k < 2; k++)
		pthread_create(&made[k], NULL, thread, (void *)(k + 1));
	look(&before[0]);
	pthread_barrier_wait(&told);
	ready_and_wait();
	pthread_barrier_wait(&looked);
	compare(0);
	expect(is_merged(pages) == merged[0], "a page that is not to be merged with others");
	expect(is_merged(pages + PAGE) == merged[1], "a page that may be merged with others");
	look_at_session(child, nice_now);
	expect(!strcmp(nice, nice_now), "the session's nice value: %s became %s", nice, nice_now);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	for (int k = 0; k < 2; k++)
		pthread_join(made[k], NULL);
	return verdict();
}
