/* System V semaphores, a message queue, and a segment that is not attached. */
#include "../c/ready.h"

#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

int main(void)
{
	begin();
	int semaphores = semget(IPC_PRIVATE, 3, 0600), queue = msgget(IPC_PRIVATE, 0600);
	int segment = shmget(IPC_PRIVATE, PAGE, 0600);
	if (semaphores < 0 || queue < 0 || segment < 0)
		unavailable("System V objects");
	struct {
		long type;
		char text[8];
	} message = {1, "kept"};
	if (semop(semaphores, &(struct sembuf){1, 5, 0}, 1) || msgsnd(queue, &message, 8, 0))
		give_up("semop, msgsnd");
	ready_and_wait();
	expect(semctl(semaphores, 1, GETVAL) == 5, "the semaphore changed");
	expect(msgrcv(queue, &message, 8, 0, IPC_NOWAIT) == 8, "the message is gone");
	semctl(semaphores, 0, IPC_RMID);
	msgctl(queue, IPC_RMID, NULL);
	shmctl(segment, IPC_RMID, NULL);
	return verdict();
}
