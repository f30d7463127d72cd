/* A directory whose changes are told by a signal (F_NOTIFY): nobody can read for which it asked. */
#include "ready.h"

#include <sys/stat.h>

static volatile sig_atomic_t told;

static void tell(int number)
{
	told = number;
}

int main(void)
{
	begin();
	signal(SIGIO, tell);
	int fd = open(in_dir("."), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	char number[16];
	sprintf(number, "%d", fd);
	write_file("numbers", number);
	if (fcntl(fd, F_NOTIFY, DN_ATTRIB | DN_MULTISHOT))
		give_up("F_NOTIFY");
	ready_and_wait();
	chmod(in_dir("numbers"), 0600);
	expect(told == SIGIO, "nobody told that a file was changed");
	return verdict();
}
