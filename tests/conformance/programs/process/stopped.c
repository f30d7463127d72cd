/* A child that is stopped stays stopped, its parent is not told of the stop twice, and SIGCONT wakes it. Another
 * one is stopped while it waits for something, a third, with threads and a handler of faults, as by Ctrl-Z, of which
 * its parent has not been told yet. */
#include "ready.h"

static bool is_stopped(pid_t pid)
{
	char path[64], line[512];
	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	FILE *file = fopen(path, "re");
	bool yes = file && fgets(line, sizeof line, file) && strrchr(line, ')')[2] == 'T';
	if (file)
		fclose(file);
	return yes;
}

static void *spin(void *unused)
{
	for (;;)
		sched_yield();
	return unused;
}

static void fault(int number)
{
	_exit(number);
}

/* In a process group of its own: one whose parent is not of its session would not stop. */
static void be_stopped(void)
{
	pthread_t threads[3];
	signal(SIGSEGV, fault);
	setpgid(0, 0);
	for (int k = 0; k < 3; k++)
		pthread_create(&threads[k], NULL, spin, NULL);
	raise(SIGTSTP);
	struct sigaction action;
	sigaction(SIGSEGV, NULL, &action);
	_exit(action.sa_handler == fault ? 23 : 3);
}

int main(void)
{
	begin();
	int to_reader[2], status;
	if (pipe(to_reader))
		give_up("pipe");
	pid_t itself = fork();
	if (!itself) {
		int kept = 0x600d;
		raise(SIGSTOP);
		_exit(kept == 0x600d ? 21 : 1);
	}
	pid_t reader = fork();
	if (!reader) {
		char bytes[4] = "";
		ssize_t got = read(to_reader[0], bytes, 4);
		_exit(got == 4 && !memcmp(bytes, "data", 4) ? 22 : 2);
	}
	pid_t threaded = fork();
	if (!threaded)
		be_stopped();
	siginfo_t info; /* all its threads have stopped once this could be told */
	waitid(P_PID, (id_t)threaded, &info, WSTOPPED | WNOWAIT);
	waitpid(itself, &status, WUNTRACED);
	kill(reader, SIGSTOP);
	waitpid(reader, &status, WUNTRACED);
	ready_and_wait();

	expect(is_stopped(itself) && is_stopped(reader), "a stopped child runs");
	expect(waitpid(threaded, &status, WNOHANG | WUNTRACED) == threaded && WIFSTOPPED(status) &&
		       WSTOPSIG(status) == SIGTSTP,
	       "the third child, stopped by SIGTSTP: %x", status);
	expect(waitpid(-1, &status, WNOHANG | WUNTRACED) == 0, "a stop that was collected is told again: %x", status);
	expect(write(to_reader[1], "data", 4) == 4, "write: %s", strerror(errno));
	expect(is_stopped(reader), "what it waits for wakes a stopped child");
	kill(itself, SIGCONT);
	kill(reader, SIGCONT);
	expect(waitpid(itself, &status, WCONTINUED) == itself && (WIFCONTINUED(status) || WIFEXITED(status)),
	       "the first child: %x", status);
	if (WIFCONTINUED(status))
		waitpid(itself, &status, 0);
	expect(WIFEXITED(status) && WEXITSTATUS(status) == 21, "the first child ended with %x", status);
	waitpid(reader, &status, 0);
	expect(WIFEXITED(status) && WEXITSTATUS(status) == 22, "the second child ended with %x", status);
	kill(threaded, SIGCONT);
	waitpid(threaded, &status, 0);
	expect(WIFEXITED(status) && WEXITSTATUS(status) == 23, "the third child ended with %x", status);
	return verdict();
}
