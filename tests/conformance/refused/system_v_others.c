/* System V semaphores and a message queue that a process outside of the tree has used, too, and a segment that is not
 * attached. */
#include "ready.h"

#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

static struct {
	long type;
	char text[8];
} message = {1, "kept"};

int main(void)
{
	begin();
	int semaphores = semget(IPC_PRIVATE, 3, 0600), queue = msgget(IPC_PRIVATE, 0600);
	int segment = shmget(IPC_PRIVATE, PAGE, 0600), told[2];
	if (semaphores < 0 || queue < 0 || segment < 0)
		unavailable("System V objects");
	if (pipe(told))
		give_up("pipe");
	pid_t middle = fork();
	if (!middle) {
		if (fork())
			_exit(0); /* no child of ours any more when the middle one has ended */
		setsid();
		semop(semaphores, &(struct sembuf){2, 7, 0}, 1);
		msgsnd(queue, &message, 8, 0);
		msgsnd(queue, &message, 8, 0);
		close(told[0]);
		if (write(told[1], "!", 1) != 1)
			_exit(1);
		close(told[1]);
		while (semop(semaphores, &(struct sembuf){0, -1, 0}, 1) && errno == EINTR)
			; /* until it is removed */
		_exit(0);
	}
	waitpid(middle, NULL, 0);
	close(told[1]);
	if (read(told[0], message.text, 1) != 1 || read(told[0], message.text, 1))
		give_up("the outsider");
	close(told[0]);
	if (semop(semaphores, &(struct sembuf){1, 5, 0}, 1) || msgrcv(queue, &message, 8, 0, 0) != 8)
		give_up("semop, msgrcv");
	ready_and_wait();
	expect(semctl(semaphores, 1, GETVAL) == 5 && semctl(semaphores, 2, GETVAL) == 7, "a semaphore changed");
	expect(msgrcv(queue, &message, 8, 0, IPC_NOWAIT) == 8, "a message is gone");
	semctl(semaphores, 0, IPC_RMID);
	msgctl(queue, IPC_RMID, NULL);
	shmctl(segment, IPC_RMID, NULL);
	return verdict();
}
