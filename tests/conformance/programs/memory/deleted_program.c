/* A program whose own file is gone. */
#include "ready.h"

#include <sys/sendfile.h>
#include <sys/stat.h>

int main(int count, char **arguments)
{
	if (count == 1) {
		int from = open("/proc/self/exe", O_RDONLY | O_CLOEXEC), to;
		struct stat status;
		fstat(from, &status);
		to = open(in_dir("copy"), O_WRONLY | O_CREAT | O_CLOEXEC, 0700);
		if (sendfile(to, from, NULL, (size_t)status.st_size) != status.st_size)
			give_up("sendfile");
		close(to);
		close(from);
		execl(in_dir("copy"), arguments[0], "again", NULL);
		give_up("exec");
	}
	begin();
	unlink(in_dir("copy"));
	ready_and_wait();
	return verdict();
}
