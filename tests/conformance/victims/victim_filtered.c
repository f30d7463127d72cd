/* The victim, under a filter of its own that forbids as much of what a checkpoint calls in it as it can do without.
 *
 * A dumper holds the filter off; when it is killed, the rest of its calls meet it. */
#define main victim
#include "victim.c"
#undef main

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>

int main(void)
{
	const unsigned int forbidden[] = {
		SYS_arch_prctl,	  SYS_brk,	       SYS_close_range,	       SYS_get_mempolicy,   SYS_get_robust_list,
		SYS_getitimer,	  SYS_getpriority,     SYS_ioprio_get,	       SYS_kcmp,	    SYS_membarrier,
		SYS_msgctl,	  SYS_personality,     SYS_sched_getaffinity,  SYS_sched_getparam,  SYS_sched_getscheduler,
		SYS_semctl,	  SYS_shmctl,	       SYS_timer_getoverrun, SYS_timer_gettime,
		SYS_userfaultfd,  SYS_waitid,
	};
	enum { COUNT = sizeof forbidden / sizeof *forbidden };
	struct sock_filter filter[COUNT + 3] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		[COUNT + 1] = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		[COUNT + 2] = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
	};
	for (unsigned char k = 0; k < COUNT; k++)
		filter[k + 1] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, forbidden[k], COUNT - k, 0);
	struct sock_fprog program = {COUNT + 3, filter};
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))
		unavailable("seccomp");
	return victim();
}
