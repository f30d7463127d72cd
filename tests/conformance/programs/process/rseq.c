/* Restartable sequences: the registration of every thread, and a sequence that was interrupted is aborted. */
#include "ready.h"

#include <sys/rseq.h>

static volatile int32_t stop;
static volatile int32_t inside;
static volatile int32_t aborts;
static volatile int32_t unwatched;

static struct rseq *own_rseq(void)
{
	return (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
}

static void check_registration(const char *who)
{
	struct rseq *area = own_rseq();
	long again = syscall(SYS_rseq, area, sizeof *area, 0, RSEQ_SIG);
	expect(again == -1 && errno == EBUSY, "%s: rseq is not registered (%s)", who,
	       again ? strerror(errno) : "it is now");
	cpu_set_t before, one;
	sched_getaffinity(0, sizeof before, &before);
	for (unsigned cpu = 0, tried = 0; cpu < CPU_SETSIZE && tried < 4; cpu++) {
		if (!CPU_ISSET(cpu, &before))
			continue;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		sched_setaffinity(0, sizeof one, &one);
		unsigned seen = *(volatile uint32_t *)&area->cpu_id;
		expect(seen == cpu, "%s: on processor %u rseq says %d", who, cpu, (int)seen);
		tried++;
	}
	sched_setaffinity(0, sizeof before, &before);
}

/* Sits inside a critical section until told to stop; whoever interrupts it must send it to the abort handler. */
static void *sequence(void *unused)
{
	struct rseq *area = own_rseq();
	__asm__ volatile(".pushsection __rseq_cs, \"aw\"\n\t"
			 ".balign 32\n"
			 "3:\n\t"
			 ".long 0, 0\n\t"
			 ".quad 1f, 2f - 1f, 4f\n\t"
			 ".popsection\n\t"
			 "5:\n\t"
			 "movl $1, inside(%%rip)\n\t"
			 "leaq 3b(%%rip), %%rax\n\t"
			 "movq %%rax, %[pointer]\n" /* whoever is interrupted before it is in has no section */
			 "1:\n\t"
			 "cmpq $0, %[pointer]\n\t" /* the kernel forgets a section when it has aborted it */
			 "je 7f\n\t"
			 "cmpl $0, stop(%%rip)\n\t"
			 "je 1b\n"
			 "2:\n\t"
			 "jmp 6f\n"
			 "7:\n\t"
			 "movl $1, unwatched(%%rip)\n\t"
			 "jmp 6f\n\t"
			 ".pushsection __rseq_failure, \"ax\"\n\t"
			 ".byte 0x0f, 0xb9, 0x3d\n\t" /* ud1, which carries the signature */
			 ".long 0x53053053\n"
			 "4:\n\t"
			 "lock incl aborts(%%rip)\n\t"
			 "jmp 5b\n\t"
			 ".popsection\n"
			 "6:\n\t"
			 : [pointer] "+m"(area->rseq_cs)
			 :
			 : "rax", "memory", "cc");
	check_registration("second thread");
	return unused;
}

int main(void)
{
	begin();
	pthread_t thread;
	pthread_create(&thread, NULL, sequence, NULL);
	while (!inside)
		sched_yield();
	int aborts_before = aborts;
	struct word word = ready_and_wait();
	if (word.frozen)
		expect(aborts > aborts_before, "a critical section was interrupted and not aborted");
	expect(!unwatched, "a critical section goes on, and the kernel does not watch it any more");
	stop = 1;
	pthread_join(thread, NULL);
	check_registration("first thread");
	return verdict();
}
