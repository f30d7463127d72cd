/* Processes that share their parent's table of descriptors, or its current directory and umask, without being threads
 * (clone(2) with CLONE_FILES or CLONE_FS): what one opens, closes or changes, the others have. */
#include "ready.h"

#include <sys/stat.h>

enum { STACK = 64 << 10, OPENED = 300, TO_CLOSE };
static char stack[STACK] __attribute__((aligned(16)));
static int in_pipe[2], out_pipe[2];

static void obey(void)
{
	char what;
	while (read(in_pipe[0], &what, 1) == 1) {
		switch (what) {
		case 'd': /* a descriptor more, and one less */
			if (dup2(out_pipe[1], OPENED) < 0 || close(TO_CLOSE))
				_exit(1);
			break;
		case 'c': /* another directory and umask */
			if (chdir("below"))
				_exit(2);
			umask(0071);
			break;
		default:
			_exit(0);
		}
		if (write(out_pipe[1], &what, 1) != 1)
			_exit(3);
	}
}

static int child(void *unused)
{
	(void)unused;
	obey();
	return 0;
}

static void ask(char what)
{
	char answer;
	if (write(in_pipe[1], &what, 1) != 1 || read(out_pipe[0], &answer, 1) != 1)
		give_up("ask");
	expect(answer == what, "%c was answered by %c", what, answer);
}

int main(void)
{
	begin();
	if (pipe(in_pipe) || pipe(out_pipe) || mkdir(in_dir("below"), 0700) || chdir(in_dir(".")))
		give_up("pipe, mkdir");
	umask(0027);
	pid_t both = clone(child, stack + STACK, CLONE_FILES | CLONE_FS | SIGCHLD, NULL);
	if (both < 0 || dup2(in_pipe[0], TO_CLOSE) < 0)
		give_up("clone, dup2");
	ready_and_wait();

	int status;
	expect(fcntl(TO_CLOSE, F_GETFD) >= 0 && fcntl(OPENED, F_GETFD) < 0, "the descriptors are not as before");
	ask('d');
	expect(fcntl(OPENED, F_GETFD) >= 0, "what the child opened is not here");
	expect(fcntl(TO_CLOSE, F_GETFD) < 0, "what the child closed is still here");
	expect(umask(0) == 0027, "the umask is another one");
	umask(0027);
	ask('c');
	char path[PATH_MAX];
	expect(getcwd(path, sizeof path) && strstr(path, "/below"), "the child's directory is not ours: %s", path);
	expect(umask(0) == 0071, "the child's umask is not ours");
	kill(both, SIGKILL);
	expect(waitpid(both, &status, 0) == both, "no child");
	return verdict();
}
