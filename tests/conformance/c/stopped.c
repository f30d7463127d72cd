/* A child that is stopped stays stopped, its parent is not told of the stop twice, and SIGCONT wakes it. Another
 * one is stopped while it waits for something. */
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
	waitpid(itself, &status, WUNTRACED);
	kill(reader, SIGSTOP);
	waitpid(reader, &status, WUNTRACED);
	ready_and_wait();

	expect(is_stopped(itself) && is_stopped(reader), "a stopped child runs");
	expect(waitpid(-1, &status, WNOHANG | WUNTRACED) == 0, "a stop that was collected is told again: %x",
	       status);
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
	return verdict();
}
