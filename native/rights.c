/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Make a system call with the credentials of another user. In the kernel each thread has its own credentials, but the
 * functions of the C library change those of all threads. So this code makes raw system calls. It is in C so that
 * nothing else runs on this thread meanwhile.
 */
#define _GNU_SOURCE
#include "torpor.h"

#include <errno.h>
#include <linux/capability.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

struct sets {
	struct __user_cap_data_struct data[2];
};

static bool set_capabilities(const struct sets *sets)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};

	return !syscall(SYS_capset, &header, sets->data);
}

/* setfsuid() and setfsgid() report no errors. A call with -1 changes nothing and returns the current id. */
static bool set_ids(uint32_t uid, uint32_t gid)
{
	syscall(SYS_setfsgid, gid);
	syscall(SYS_setfsuid, uid);
	return (uint32_t)syscall(SYS_setfsgid, -1) == gid && (uint32_t)syscall(SYS_setfsuid, -1) == uid;
}

long tp_syscall_as(const struct tp_rights *wanted, const struct tp_rights *own, long nr, long a, long b, long c, long d,
		   long e, long f)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	int dumpable = prctl(PR_GET_DUMPABLE), signal = 0;
	struct sets mine, theirs;
	long result = -EPERM;
	bool grouped;

	if (syscall(SYS_capget, &header, mine.data))
		return -errno;
	theirs = mine;
	for (int i = 0; i < 2; i++)
		theirs.data[i].effective = (uint32_t)(wanted->effective >> 32 * i) & mine.data[i].permitted;
	prctl(PR_GET_PDEATHSIG, &signal);
	grouped = !syscall(SYS_setgroups, wanted->count, wanted->groups);
	if (grouped && set_ids(wanted->uid, wanted->gid) && set_capabilities(&theirs))
		result = tp_syscall(nr, a, b, c, d, e, f);
	/* First regain the capability that setgroups() needs. Abort rather than go on with another's credentials. */
	if (!set_capabilities(&mine) || (grouped && syscall(SYS_setgroups, own->count, own->groups)) ||
	    !set_ids(own->uid, own->gid) || !set_capabilities(&mine))
		abort();
	/* A change of these ids clears both (kernel/cred.c, commit_creds). */
	prctl(PR_SET_DUMPABLE, dumpable == 1);
	prctl(PR_SET_PDEATHSIG, signal);
	return result;
}
