/* A System V shared memory segment. */
#include "../c/ready.h"

#include <sys/shm.h>

int main(void)
{
	begin();
	int id = shmget(IPC_PRIVATE, PAGE, 0600);
	char *at = id < 0 ? (char *)-1 : shmat(id, NULL, 0);
	if (at == (char *)-1)
		unavailable("shmget, shmat");
	shmctl(id, IPC_RMID, NULL); /* gone when we end, whatever happens */
	strcpy(at, "kept");
	ready_and_wait();
	expect(!strcmp(at, "kept"), "the segment changed");
	return verdict();
}
