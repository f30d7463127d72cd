/* A process that began as root and became somebody else: all its ids, groups and capabilities. */
#include "ready.h"

#include <grp.h>
#include <linux/capability.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/stat.h>

struct ids {
	uid_t uids[4];
	gid_t gids[4], groups[8];
	int count, securebits;
	struct __user_cap_data_struct capabilities[2];
	bool bounding[41], ambient[41];
};

static struct ids look(void)
{
	struct ids ids;
	memset(&ids, 0, sizeof ids);
	getresuid(&ids.uids[0], &ids.uids[1], &ids.uids[2]);
	getresgid(&ids.gids[0], &ids.gids[1], &ids.gids[2]);
	ids.uids[3] = (uid_t)setfsuid((uid_t)-1);
	ids.gids[3] = (gid_t)setfsgid((gid_t)-1);
	ids.count = getgroups(8, ids.groups);
	ids.securebits = prctl(PR_GET_SECUREBITS);
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	syscall(SYS_capget, &header, ids.capabilities);
	for (int k = 0; k < 41; k++) {
		ids.bounding[k] = prctl(PR_CAPBSET_READ, k) == 1;
		ids.ambient[k] = prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, k, 0, 0) == 1;
	}
	return ids;
}

int main(void)
{
	begin();
	chmod(in_dir("."), 0777); /* who we become must still be able to speak */
	const gid_t groups[] = {1234, 5678, 9999};
	prctl(PR_CAPBSET_DROP, CAP_SYS_MODULE);
	/* One that its programs may have if the file says so, and no other program any more. */
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2];
	if (syscall(SYS_capget, &header, data))
		give_up("capget");
	data[0].inheritable |= 1 << CAP_NET_RAW;
	if (syscall(SYS_capset, &header, data))
		give_up("capset");
	prctl(PR_CAPBSET_DROP, CAP_NET_RAW);
	pid_t child = fork(); /* one keeps some capabilities, the other gives up everything */
	if (setgroups(3, groups) || setresgid(2001, 2002, 2003))
		give_up("groups");
	if (child) {
		prctl(PR_SET_KEEPCAPS, 1);
		if (setresuid(1001, 1001, 1001))
			give_up("setresuid");
		struct __user_cap_data_struct kept[2] = {
			{.permitted = 1 << CAP_KILL | 1 << CAP_NET_BIND_SERVICE,
			 .effective = 1 << CAP_KILL,
			 .inheritable = 1 << CAP_NET_BIND_SERVICE | 1 << CAP_NET_RAW}};
		if (syscall(SYS_capset, &header, kept) ||
		    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE, 0, 0))
			give_up("capset");
	} else if (setresuid(1001, 1002, 1003)) {
		give_up("setresuid");
	}
	struct ids before = look();
	if (!child) {
		sigset_t set;
		int number;
		sigemptyset(&set);
		sigaddset(&set, SIGUSR1);
		sigprocmask(SIG_BLOCK, &set, NULL);
		write_file("child", "ready");
		sigwait(&set, &number);
		struct ids after = look();
		_exit(memcmp(&before, &after, sizeof before) ? 1 : 0);
	}
	while (access(in_dir("child"), F_OK))
		sched_yield();
	sleeps_in(child, SYS_rt_sigtimedwait);
	ready_and_wait();

	struct ids after = look();
	expect(!memcmp(before.uids, after.uids, sizeof before.uids), "user ids changed: %d %d %d %d",
	       after.uids[0], after.uids[1], after.uids[2], after.uids[3]);
	expect(!memcmp(before.gids, after.gids, sizeof before.gids), "group ids changed");
	expect(before.count == after.count && !memcmp(before.groups, after.groups, sizeof before.groups),
	       "supplementary groups changed");
	expect(!memcmp(before.capabilities, after.capabilities, sizeof before.capabilities),
	       "capabilities changed");
	expect(!memcmp(before.bounding, after.bounding, sizeof before.bounding), "the bounding set changed");
	expect(!memcmp(before.ambient, after.ambient, sizeof before.ambient), "the ambient set changed");
	expect(before.securebits == after.securebits, "securebits changed");
	kill(child, SIGUSR1);
	int status;
	expect(waitpid(child, &status, 0) == child && !status, "the child has other ids now");
	return verdict();
}
