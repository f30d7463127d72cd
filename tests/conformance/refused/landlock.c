/* A process in a Landlock domain. Nothing shows it but that it may not look at others any more. */
#include "ready.h"

#include <sys/prctl.h>

int main(void)
{
	begin();
	struct {
		uint64_t handled_fs, handled_net, scoped;
	} rules = {1 << 0, 0, 0}; /* LANDLOCK_ACCESS_FS_EXECUTE: nothing may be executed */
	int fd = (int)syscall(444 /* landlock_create_ruleset */, &rules, 8, 0);
	if (fd < 0)
		unavailable("Landlock");
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(446 /* landlock_restrict_self */, fd, 0))
		give_up("landlock_restrict_self");
	close(fd);
	ready_and_wait();
	char *argv[] = {"true", NULL};
	execv("/bin/true", argv);
	expect(errno == EACCES, "the domain is gone");
	return verdict();
}
