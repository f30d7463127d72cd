/* System V semaphores with values, a key, waiters and something to undo, and message queues with messages and waiters.
 * Ids and keys are what they were; a semaphore that a process holds with SEM_UNDO is released when it ends. */
#include "ready.h"

#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>

enum { LOCK = 0, GATE = 1, NEGATIVE = 2, COUNT = 3, MANY = 230 };

struct message {
	long type;
	char text[100];
};

static void operate(int set, int number, int change, int flags)
{
	struct sembuf operation = {(unsigned short)number, (short)change, (short)flags};
	while (semop(set, &operation, 1)) /* a stop by SIGSTOP ends it with EINTR (signal(7)) */
		if (errno != EINTR)
			_exit(9);
}

static void put(int queue, long type, const char *text)
{
	struct message message = {type, ""};
	strcpy(message.text, text);
	if (msgsnd(queue, &message, strlen(text), IPC_NOWAIT))
		give_up("msgsnd");
}

static void check_message(int queue, long wanted, long type, const char *text)
{
	struct message message = {0, ""};
	ssize_t size = msgrcv(queue, &message, sizeof message.text, wanted, IPC_NOWAIT);
	expect(size == (ssize_t)strlen(text) && message.type == type && !strcmp(message.text, text),
	       "message '%s' of type %ld came as '%s' of type %ld: %s", text, type, message.text, message.type,
	       size < 0 ? strerror(errno) : "");
}

int main(void)
{
	begin();
	key_t key = (key_t)(0x55000000 + getpid());
	int set = semget(key, COUNT, IPC_CREAT | IPC_EXCL | 0640), many = semget(IPC_PRIVATE, MANY, 0600);
	int full = msgget(key, IPC_CREAT | IPC_EXCL | 0640), empty = msgget(IPC_PRIVATE, 0600);
	if (set < 0 || many < 0 || full < 0 || empty < 0)
		unavailable("System V objects");
	unsigned short values[MANY];
	for (int k = 0; k < MANY; k++)
		values[k] = (unsigned short)(k * 100);
	values[MANY - 1] = 32767;
	if (semctl(many, 0, SETALL, values) || semctl(set, LOCK, SETVAL, 3) || semctl(set, NEGATIVE, SETVAL, 1000))
		give_up("semctl");
	put(full, 7, "seven");
	put(full, 1, "");
	put(full, 7, "seven again");
	operate(set, NEGATIVE, 700, SEM_UNDO); /* to be taken away at our end */

	int told[2];
	if (pipe(told))
		give_up("pipe");
	pid_t holder = fork();
	if (!holder) { /* holds the lock until it ends */
		operate(set, LOCK, -2, SEM_UNDO);
		if (write(told[1], "!", 1) != 1)
			_exit(8);
		operate(set, GATE, -1, 0);
		_exit(0);
	}
	char byte;
	if (read(told[0], &byte, 1) != 1)
		give_up("the holder");
	pid_t waiter = fork();
	if (!waiter) { /* gets it then */
		operate(set, LOCK, -3, 0);
		_exit(0);
	}
	pid_t reader = fork();
	if (!reader) {
		struct message message;
		_exit(msgrcv(empty, &message, sizeof message.text, 5, 0) == 4 ? 0 : 7);
	}
	int left = msgget(IPC_PRIVATE, 0600);
	pid_t zombie = fork();
	if (!zombie) { /* nobody has waited for who was the last to use these */
		put(left, 3, "from a zombie");
		operate(many, 0, 5, 0);
		_exit(0);
	}
	values[0] += 5;
	siginfo_t found;
	if (waitid(P_PID, (id_t)zombie, &found, WEXITED | WNOWAIT))
		give_up("waitid");
	sleeps_in(holder, SYS_semtimedop);
	sleeps_in(waiter, SYS_semtimedop);
	sleeps_in(reader, SYS_msgrcv);
	ready_and_wait();

	struct semid_ds status;
	expect(semget(key, COUNT, 0) == set, "the key leads to another set");
	expect(!semctl(set, 0, IPC_STAT, &status) && status.sem_nsems == COUNT && (status.sem_perm.mode & 0777) == 0640,
	       "the set is another: %s", strerror(errno));
	expect(status.sem_perm.uid == getuid() && status.sem_perm.gid == getgid(), "another's set");
	expect(semctl(set, LOCK, GETVAL) == 1 && semctl(set, NEGATIVE, GETVAL) == 1700 && !semctl(set, GATE, GETVAL),
	       "values %d %d %d", semctl(set, LOCK, GETVAL), semctl(set, GATE, GETVAL), semctl(set, NEGATIVE, GETVAL));
	unsigned short now[MANY];
	expect(!semctl(many, 0, GETALL, now) && !memcmp(now, values, sizeof now), "the values of a large set");
	struct msqid_ds queue;
	expect(msgget(key, 0) == full && !msgctl(full, IPC_STAT, &queue), "the key leads to another queue");
	expect(queue.msg_qnum == 3 && (queue.msg_perm.mode & 0777) == 0640, "%lu messages, mode %o",
	       (unsigned long)queue.msg_qnum, queue.msg_perm.mode);
	check_message(full, 1, 1, "");
	check_message(full, 0, 7, "seven");
	check_message(full, 0, 7, "seven again");
	check_message(left, 0, 3, "from a zombie");
	put(empty, 5, "five");
	int ended;
	expect(waitpid(zombie, &ended, 0) == zombie && !ended, "who sent and ended: %x", ended);
	expect(waitpid(reader, &ended, 0) == reader && !ended, "who waited for a message: %x", ended);
	operate(set, GATE, 1, 0);
	expect(waitpid(holder, &ended, 0) == holder && !ended, "who held the lock: %x", ended);
	expect(waitpid(waiter, &ended, 0) == waiter && !ended, "who waited for the lock: %x", ended);
	expect(!semctl(set, LOCK, GETVAL), "the lock is at %d", semctl(set, LOCK, GETVAL));
	pid_t last = fork(); /* what we have to undo is ours, and not a child's */
	if (!last)
		_exit(0);
	waitpid(last, &ended, 0);
	expect(semctl(set, NEGATIVE, GETVAL) == 1700, "a child undid what is ours");
	expect(!msgctl(full, IPC_RMID, NULL) && !msgctl(empty, IPC_RMID, NULL) &&
		       !msgctl(left, IPC_RMID, NULL) && !semctl(many, 0, IPC_RMID),
	       "removing: %s", strerror(errno));
	semctl(set, 0, IPC_RMID);
	return verdict();
}
