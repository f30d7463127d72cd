/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Semaphores and message queues of System V, and message queues of POSIX.
 *
 * Nothing shows whose an object of System V is but who has used it last. So the first process alone makes them, uses
 * what the others leave alone (the first semaphore, receiving), and is there as long as the program (docs/objects.md).
 */
#include "player.h"

#include <dirent.h>
#include <mqueue.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/stat.h>

enum { SLOTS = 3, SEMAPHORES = 4, MOST = 10 };

struct text {
	long type;
	char text[100];
};

/* What no other program has, not this one's twin either: FNV-1a of the folder. play.py takes away what is left. */
uint32_t own_number(void)
{
	uint32_t hash = 2166136261U;

	for (const char *at = shared->place; *at; at++)
		hash = (hash ^ (unsigned char)*at) * 16777619U;
	return hash;
}

static key_t key_of(long slot)
{
	return (key_t)((own_number() & 0x0fffffffU) << 2 | (uint32_t)(slot % SLOTS) | 0x40000000U);
}

static bool is_first(void)
{
	return getpid() == shared->actors[0].pid;
}

static int set_of(long slot)
{
	return semget(key_of(slot), 0, 0);
}

static int queue_of(long slot)
{
	return msgget(key_of(slot), 0);
}

/* set */
static long sem_make(const long *a)
{
	struct sembuf touch[] = {{0, 1, IPC_NOWAIT}, {0, -1, IPC_NOWAIT}};

	if (!is_first())
		return -2;
	int set = semget(key_of(a[0]), SEMAPHORES, IPC_CREAT | IPC_EXCL | 0600);
	return set < 0 ? -1 : semop(set, touch, 2);
}

/* set, semaphore, value */
static long sem_set(const long *a)
{
	return semctl(set_of(a[0]), (int)(a[1] % (SEMAPHORES - 1)) + 1, SETVAL, (int)(a[2] % 20));
}

/* set, semaphore, change, whether it is undone */
static long sem_op(const long *a)
{
	struct sembuf one = {(unsigned short)(a[1] % (SEMAPHORES - 1) + 1), (short)(a[2] % 9 - 4),
			     (short)(IPC_NOWAIT | (a[3] % 3 == 0 ? SEM_UNDO : 0))};

	return semop(set_of(a[0]), &one, 1);
}

/* set */
static long sem_state(const long *a)
{
	unsigned short values[SEMAPHORES];
	struct semid_ds about;
	int set = set_of(a[0]);

	if (semctl(set, 0, GETALL, values) || semctl(set, 0, IPC_STAT, &about))
		return -1;
	for (int i = 0; i < SEMAPHORES; i++)
		say(" %d", values[i]);
	return about.sem_perm.mode;
}

/* set */
static long sem_remove(const long *a)
{
	return semctl(set_of(a[0]), 0, IPC_RMID);
}

static long queue_state(const long *a)
{
	struct msqid_ds about;

	if (msgctl(queue_of(a[0]), IPC_STAT, &about))
		return -1;
	say(" %lu wait, %lu of %lu bytes", about.msg_qnum, about.__msg_cbytes, about.msg_qbytes);
	return about.msg_perm.mode;
}

static long send_text(int queue, long type, long size, int value)
{
	struct text message = {.type = type};
	struct msqid_ds about;

	if (msgctl(queue, IPC_STAT, &about))
		return -1;
	if (about.msg_qnum >= MOST)
		return -2;
	memset(message.text, '0' + value % 10, sizeof(message.text));
	return msgsnd(queue, &message, (size_t)size % sizeof(message.text), IPC_NOWAIT);
}

static long receive_text(int queue, long type, int flags)
{
	struct text message;
	long size = msgrcv(queue, &message, sizeof(message.text), type, IPC_NOWAIT | flags), sum = 0;

	if (size < 0)
		return -1;
	for (long i = 0; i < size; i++)
		sum = sum * 31 + message.text[i];
	say(" type %ld sum %lx", message.type, sum & 0xffffff);
	return size;
}

/* queue */
static long queue_make(const long *a)
{
	if (!is_first())
		return -2;
	int queue = msgget(key_of(a[0]), IPC_CREAT | IPC_EXCL | 0600);
	if (queue < 0 || send_text(queue, 1, 1, 0))
		return -1;
	return receive_text(queue, 0, 0);
}

/* queue, bytes, value */
static long queue_send(const long *a)
{
	return send_text(queue_of(a[0]), a[2] % 4 + 1, a[1], (int)a[2]);
}

/* queue, type: the first, one, another than that, or the lowest */
static long queue_receive(const long *a)
{
	static const long types[] = {0, 1, 2, 3, -2, -4};

	if (!is_first())
		return -2;
	return receive_text(queue_of(a[0]), types[a[1] % 6], a[2] % 4 ? 0 : MSG_EXCEPT);
}

/* queue */
static long queue_remove(const long *a)
{
	return msgctl(queue_of(a[0]), IPC_RMID, NULL);
}

static const char *name_of(long slot)
{
	static _Thread_local char name[32];

	snprintf(name, sizeof(name), "/player-%08x-%ld", own_number(), slot % SLOTS);
	return name;
}

/* descriptor, name, flags */
static long mq_open_(const long *a)
{
	static const int flags[] = {O_RDWR, O_RDWR, O_RDONLY, O_WRONLY};
	struct mq_attr limits = {.mq_maxmsg = 3, .mq_msgsize = 64};

	return place_fd(mq_open(name_of(a[1]), flags[a[2] % 4] | O_CREAT | O_NONBLOCK, 0600, &limits), a[0]);
}

/* descriptor, bytes, priority */
static long mq_send_(const long *a)
{
	char text[64];
	int flags = impatient(fd_of(a[0]));

	memset(text, '0' + (int)(a[2] % 10), sizeof(text));
	long result = mq_send(fd_of(a[0]), text, (size_t)a[1] % sizeof(text), (unsigned int)a[2] % 5);
	patient(fd_of(a[0]), flags);
	return result;
}

/* descriptor */
static long mq_receive_(const long *a)
{
	char text[64];
	unsigned int priority = 0;
	int flags = impatient(fd_of(a[0]));
	long size = mq_receive(fd_of(a[0]), text, sizeof(text), &priority);

	patient(fd_of(a[0]), flags);
	if (size >= 0)
		say(" priority %u of %c", priority, size ? text[0] : '-');
	return size;
}

/* descriptor */
static long mq_state(const long *a)
{
	struct mq_attr about;

	if (mq_getattr(fd_of(a[0]), &about))
		return -1;
	say(" %ld of %ld, flags %lx", about.mq_curmsgs, about.mq_maxmsg, about.mq_flags);
	return about.mq_msgsize;
}

/* name */
static long mq_unlink_(const long *a)
{
	return mq_unlink(name_of(a[0]));
}

/* Whether a descriptor that this process may see, besides its own `but`, leads to a file. */
static bool is_open(ino_t inode, int but)
{
	bool found = false;
	char path[64], name[sizeof(path) + 256];
	struct stat file;
	DIR *processes = opendir("/proc");

	for (struct dirent *one; !found && (one = readdir(processes));) {
		snprintf(path, sizeof(path), "/proc/%d/fd", atoi(one->d_name));
		DIR *table = atoi(one->d_name) ? opendir(path) : NULL;
		for (struct dirent *fd; table && !found && (fd = readdir(table));) {
			snprintf(name, sizeof(name), "%s/%s", path, fd->d_name);
			if (atoi(one->d_name) != getpid() || atoi(fd->d_name) != but)
				found = !stat(name, &file) && file.st_ino == inode;
		}
		if (table)
			closedir(table);
	}
	closedir(processes);
	return found;
}

/* A queue that nobody has open is not in an image: nothing shows it. */
void remove_unopened(void)
{
	struct stat file;

	for (long slot = 0; slot < SLOTS; slot++) {
		mqd_t queue = mq_open(name_of(slot), O_RDONLY);
		if (queue < 0)
			continue;
		bool opened = !fstat(queue, &file) && is_open(file.st_ino, queue);
		mq_close(queue);
		if (!opened)
			mq_unlink(name_of(slot));
	}
}

void remove_own(void)
{
	for (long slot = 0; slot < SLOTS; slot++) {
		semctl(set_of(slot), 0, IPC_RMID);
		msgctl(queue_of(slot), IPC_RMID, NULL);
		mq_unlink(name_of(slot));
	}
}

const struct verb ipc_verbs[] = {{"sem_make", sem_make},       {"sem_set", sem_set},
				 {"sem_op", sem_op},	       {"sem_state", sem_state},
				 {"sem_remove", sem_remove},   {"queue_make", queue_make},
				 {"queue_send", queue_send},   {"queue_receive", queue_receive},
				 {"queue_state", queue_state}, {"queue_remove", queue_remove},
				 {"mq_open", mq_open_},	       {"mq_send", mq_send_},
				 {"mq_receive", mq_receive_},  {"mq_state", mq_state},
				 {"mq_unlink", mq_unlink_},    {0}};
