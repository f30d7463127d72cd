/* A restored process is a whole process: it forks, runs programs, makes threads, maps memory, takes signals,
 * and its children and threads are whole too. */
#include "ready.h"

static __thread int own = 17;

static void *thread(void *argument)
{
	expect(own == 17, "a new thread's thread-local values are not the initial ones");
	own = 99;
	return argument;
}

static volatile int handled;
static void handle(int number)
{
	handled = number;
}

int main(void)
{
	begin();
	own = 55;
	ready_and_wait();

	expect(own == 55, "the thread-local value became %d", own);
	for (int k = 0; k < 20; k++) {
		pthread_t one;
		void *result;
		expect(!pthread_create(&one, NULL, thread, &own) && !pthread_join(one, &result) &&
			       result == &own,
		       "no new thread");
	}
	pid_t self = getpid(), child = fork();
	if (!child)
		_exit(getppid() == self && own == 55 ? 33 : 1);
	int status;
	expect(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 33, "a child after it: %x",
	       status);
	FILE *answer = popen("echo from a shell; exit 4", "r");
	char line[64] = "";
	expect(answer && fgets(line, sizeof line, answer) && !strcmp(line, "from a shell\n"),
	       "a shell said '%s'", line);
	expect(WEXITSTATUS(pclose(answer)) == 4, "a shell's exit status is lost");
	signal(SIGUSR1, handle);
	raise(SIGUSR1);
	expect(handled == SIGUSR1, "no signal is handled");
	char *memory = malloc(10 << 20);
	memset(memory, 1, 10 << 20);
	free(memory);
	char name[16] = "";
	pthread_getname_np(pthread_self(), name, sizeof name);
	expect(!strcmp(name, "afterlife"), "the name became %s", name);
	sigset_t pending;
	sigpending(&pending);
	for (int number = 1; number <= 64; number++)
		expect(!sigismember(&pending, number), "signal %d is pending", number);
	return verdict();
}
