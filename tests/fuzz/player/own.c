/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a process or a thread is allowed and has set for itself: ids, capabilities, filters, policies, flags.
 */
#include "player.h"

#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/mempolicy.h>
#include <linux/seccomp.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67 /* Linux 6.4 */
#define PR_GET_MEMORY_MERGE 68
#endif

/* the effective group and supplementary ones, of root only */
static long ids(const long *a)
{
	gid_t group = a[1] % 3 ? 65534 - (gid_t)(a[1] % 3) : 0;
	gid_t groups[] = {group, (gid_t)(a[2] % 100)};

	if (getuid())
		return -2;
	if (has_threads())
		return -2; /* libc asks each thread by a signal, and some wait */
	return setegid(group) || setgroups((size_t)(a[2] % 3), groups) ? -1 : 0;
}

static long ids_state(const long *a)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct caps[2];
	uid_t users[3];
	gid_t groups[3];

	(void)a;
	getresuid(&users[0], &users[1], &users[2]);
	getresgid(&groups[0], &groups[1], &groups[2]);
	if (syscall(SYS_capget, &header, caps))
		return -1;
	say(" %d %d %d %d %d groups %d caps %x %x %x keep %d secure %d", users[1] == users[0], users[2] == users[0],
	    groups[1] == groups[0], groups[2] == groups[0], users[0] == 0, getgroups(0, NULL), caps[0].effective,
	    caps[0].permitted, caps[0].inheritable, prctl(PR_GET_KEEPCAPS), prctl(PR_GET_SECUREBITS));
	return 0;
}

/* a capability that the process does without; how */
static long give_up(const long *a)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct caps[2];
	static const int some[] = {CAP_NET_RAW, CAP_SYS_TIME, CAP_MKNOD, CAP_SYS_BOOT, CAP_AUDIT_WRITE};
	int one = some[a[0] % 5];

	if (getuid() || has_threads() || syscall(SYS_capget, &header, caps))
		return -2;
	if (a[1] % 3 == 0)
		return prctl(PR_CAPBSET_DROP, one);
	caps[0].effective &= ~(1U << one);
	if (a[1] % 3 == 1)
		caps[0].inheritable |= caps[0].permitted & 1U << one;
	return (int)syscall(SYS_capset, &header, caps);
}

/* what: a filter, of root's own, that lets all through or denies a call that nobody makes */
static long filter(const long *a)
{
	struct sock_filter lines[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_acct, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (a[0] % 100 + 1)),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {.len = 4, .filter = lines};

	if (getuid())
		return -2; /* of a user it is refused, and all else with it */
	long result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, a[1] % 2 ? SECCOMP_FILTER_FLAG_TSYNC : 0, &program);
	return result > 0 ? 1 : result; /* the id of a thread that has another filter */
}

static long filtered(const long *a)
{
	(void)a;
	say(" mode %d", prctl(PR_GET_SECCOMP));
	return syscall(SYS_acct, "/proc/nowhere/at all");
}

/* flags of the personality that change nothing of what was mapped */
static long persona(const long *a)
{
	static const unsigned long flags[] = {ADDR_NO_RANDOMIZE, SHORT_INODE, WHOLE_SECONDS, STICKY_TIMEOUTS, UNAME26};
	int before = personality(0xffffffff);

	if (a[1] % 2 == 0 && personality((unsigned long)before ^ flags[a[0] % 5]) < 0)
		return -1;
	return personality(0xffffffff);
}

/* the thread's memory policy */
static long numa(const long *a)
{
	unsigned long nodes = 1;
	int now = -1;

	if (a[0] % 2 == 0 && syscall(SYS_set_mempolicy,
				     a[1] % 3 == 0   ? MPOL_DEFAULT
				     : a[1] % 3 == 1 ? MPOL_PREFERRED
						     : MPOL_INTERLEAVE,
				     a[1] % 3 ? &nodes : NULL, a[1] % 3 ? 8 : 0))
		return -1;
	return syscall(SYS_get_mempolicy, &now, NULL, 0, NULL, 0) ? -1 : now;
}

/* class and level, or what they are */
static long io_priority(const long *a)
{
	if (a[0] % 2 == 0 && syscall(SYS_ioprio_set, 1, 0, (a[1] % 2 + 2) << 13 | (a[1] % 2 ? 0 : a[2] % 8)))
		return -1;
	return syscall(SYS_ioprio_get, 1, 0);
}

static long write_own(const char *name, const char *text)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/%s", name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	long size = write(fd, text, strlen(text));
	close(fd);
	return size;
}

static long read_own(const char *name)
{
	char path[64], text[64] = "";
	int fd;

	snprintf(path, sizeof(path), "/proc/self/%s", name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		if (read(fd, text, sizeof(text) - 1) < 0)
			text[0] = 0;
		close(fd);
	}
	text[strcspn(text, "\n")] = 0;
	say(" %s %s", name, text);
	return 0;
}

/* what, value: settings that are files of /proc, and prctl(2)'s rarer ones */
static long setting(const long *a)
{
	char text[32];

	snprintf(text, sizeof(text), "%ld", a[1] % 100 + 1);
	switch (a[0] % 7) {
	case 0:
		return write_own("oom_score_adj", text);
	case 1:
		return write_own("coredump_filter", text);
	case 2:
		return prctl(PR_SET_KEEPCAPS, a[1] % 2, 0, 0, 0);
	case 3:
		return prctl(PR_MCE_KILL, PR_MCE_KILL_SET, a[1] % 2 ? PR_MCE_KILL_EARLY : PR_MCE_KILL_DEFAULT, 0, 0);
	case 4:
		return prctl(PR_SET_MEMORY_MERGE, a[1] % 2, 0, 0, 0);
	case 5:
		return syscall(SYS_membarrier, a[1] % 2 ? 16 : 2, 0, 0); /* register: private expedited, global */
	default:
		return prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, 0x300000000000 + a[1] % 3 * 0x10000000L, 8 * 4096,
			     a[2] % 2 ? "named (by us)" : NULL);
	}
}

static long settings(const long *a)
{
	(void)a;
	read_own("oom_score_adj");
	read_own("coredump_filter");
	say(" mce %d merge %d", prctl(PR_MCE_KILL_GET, 0, 0, 0, 0), prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0));
	return 0;
}

/* a process of root's has another root directory: the folder "d" of the play. Not the first one, which tells of it all */
static long root(const long *a)
{
	char path[PATH_MAX + 8];

	(void)a;
	if (getuid() || getpid() == shared->actors[0].pid)
		return -2;
	snprintf(path, sizeof(path), "%s/d", shared->place);
	return chroot(path);
}

const struct verb own_verbs[] = {
	{"ids", ids},		{"ids_state", ids_state}, {"give_up", give_up}, {"filter", filter},
	{"filtered", filtered}, {"persona", persona},	  {"numa", numa},	{"io_priority", io_priority},
	{"setting", setting},	{"settings", settings},	  {"root", root},	{0}};
