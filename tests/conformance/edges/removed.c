/* What a job has of System V and of POSIX queues stays on the host when it is killed, and a wake makes it anew in an IPC
 * namespace of the job's own. Removed there, it is gone for good: not there again when the job is woken once more. */
#include "ready.h"

#include <mqueue.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

int main(void)
{
	begin();
	sigset_t remove;
	int number;
	sigemptyset(&remove);
	sigaddset(&remove, SIGUSR1);
	sigprocmask(SIG_BLOCK, &remove, NULL);

	key_t key = (key_t)(0x54000000 + getpid());
	int set = semget(key, 1, IPC_CREAT | IPC_EXCL | 0600), queue = msgget(key, IPC_CREAT | IPC_EXCL | 0600);
	int segment = shmget(key, PAGE, IPC_CREAT | IPC_EXCL | 0600);
	struct sembuf up = {0, 1, 0};
	long message[2] = {1, 2};
	if (set < 0 || queue < 0 || segment < 0 || semop(set, &up, 1) || msgsnd(queue, message, sizeof(long), 0))
		unavailable("System V");
	void *at = shmat(segment, NULL, 0);
	char name[32];
	snprintf(name, sizeof name, "/removed-%d", getpid());
	mqd_t posix = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, NULL);
	if (at == (void *)-1 || posix < 0)
		unavailable("shmat, mq_open");
	sleeps_in(own_tid(), SYS_rt_sigtimedwait);
	ready();
	if (sigwait(&remove, &number))
		give_up("sigwait");
	if (semctl(set, 0, IPC_RMID) || msgctl(queue, IPC_RMID, NULL) || shmdt(at) ||
	    shmctl(segment, IPC_RMID, NULL) || mq_close(posix) || mq_unlink(name))
		give_up("what the job had was not there after a wake");
	write_file("removed", "");
	await_go();

	expect(semget(key, 1, 0) < 0 && errno == ENOENT, "the semaphores that it removed are there");
	expect(msgget(key, 0) < 0 && errno == ENOENT, "the queue that it removed is there");
	expect(shmget(key, PAGE, 0) < 0 && errno == ENOENT, "the segment that it removed is there");
	expect(mq_open(name, O_RDWR) < 0 && errno == ENOENT, "the POSIX queue that it removed is there");
	return verdict();
}
