/* The parent of a program under test: launch session|follow COMMAND...
 *
 * It adopts and reaps every process of the program, so that all are gone as soon as they are dead, and exits as
 * the program did when the last has ended. With `session` the program leads a session of its own; with `follow`
 * it stays in this process's, whose leader is then outside of its tree. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int count, char **arguments)
{
	if (count < 3 || prctl(PR_SET_CHILD_SUBREAPER, 1))
		return 125;
	pid_t program = fork(), ended;
	if (!program) {
		for (int signal = SIGHUP; signal <= SIGQUIT; signal++) /* what nohup and a shell's & have ignored */
			sigaction(signal, &(struct sigaction){ .sa_handler = SIG_DFL }, NULL);
		if (!strcmp(arguments[1], "session"))
			setsid();
		execvp(arguments[2], arguments + 2);
		perror(arguments[2]);
		_exit(126);
	}
	int status, of_program = 125;
	while ((ended = wait(&status)) > 0)
		if (ended == program)
			of_program = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	return of_program;
}
