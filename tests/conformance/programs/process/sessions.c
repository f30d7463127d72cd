/* Sessions and groups whose leaders are gone, as daemons leave them: a process in a session whose leader has ended, with
 * a parent in another session; a group whose leader has ended; a group of another session's member; a stranger's child
 * that fell to a subreaper. */
#include "ready.h"

#include <sys/prctl.h>

struct place {
	pid_t pid, parent, group, session;
};
enum { DAEMON, ORPHAN, GROUPED, KINDS };
static struct place *places; /* of each, and then as it sees itself later */
static volatile int *go;

static void look(struct place *at)
{
	*at = (struct place){getpid(), getppid(), getpgid(0), getsid(0)};
}

static void stay(int kind)
{
	look(&places[kind]);
	while (!*go)
		usleep(1000);
	look(&places[KINDS + kind]);
	_exit(0);
}

int main(void)
{
	begin();
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	places = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	go = (int *)(places + 2 * KINDS);
	pid_t leader = fork();
	if (!leader) { /* a daemon: its session's leader ends at once */
		setsid();
		if (!fork()) {
			while (getppid() != *(volatile pid_t *)&places[DAEMON].parent)
				usleep(1000);
			stay(DAEMON);
		}
		_exit(0);
	}
	waitpid(leader, NULL, 0);
	places[DAEMON].parent = getpid();
	pid_t second = fork();
	if (!second) { /* a group in a session of its own, both of whose leaders end */
		setsid();
		pid_t group = fork();
		if (!group) {
			setpgid(0, 0);
			if (!fork()) {
				while (getppid() != *(volatile pid_t *)&places[DAEMON].parent)
					usleep(1000);
				stay(ORPHAN);
			}
			_exit(0);
		}
		waitpid(group, NULL, 0);
		_exit(0);
	}
	waitpid(second, NULL, 0);
	pid_t third = fork();
	if (!third) { /* a group whose leader has ended, in our session */
		setpgid(0, 0);
		if (!fork()) {
			while (getppid() != *(volatile pid_t *)&places[DAEMON].parent)
				usleep(1000);
			stay(GROUPED);
		}
		_exit(0);
	}
	waitpid(third, NULL, 0);
	for (int kind = 0; kind < KINDS; kind++)
		while (!((volatile struct place *)places)[kind].session)
			usleep(1000);
	ready_and_wait();

	*go = 1;
	for (int kind = 0; kind < KINDS; kind++) {
		int status;
		expect(wait(&status) > 0 && !status, "a child ended with %#x", status);
	}
	for (int kind = 0; kind < KINDS; kind++) {
		struct place *was = &places[kind], *is = &places[KINDS + kind];
		expect(!memcmp(was, is, sizeof *was), "%d: %d %d %d %d became %d %d %d %d", kind, was->pid, was->parent,
		       was->group, was->session, is->pid, is->parent, is->group, is->session);
	}
	expect(wait(NULL) < 0 && errno == ECHILD, "there are more children than before");
	return verdict();
}
