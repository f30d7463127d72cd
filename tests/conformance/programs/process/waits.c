/* System calls that wait for an event without a time limit. Afterwards the event comes, and each must return with
 * it. EINTR is right only where the kernel gives it to a process that is stopped and continued (signal(7)). */
#include "ready.h"

#include <linux/futex.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>

static int read_pipe[2], write_pipe[2], poll_pipe[2], readv_pipe[2], pair[2], listener, event, epoll,
	epoll_event;
static int word_to_wait_on, lock_word;
static pid_t child, other_child;
static char written[65536];
static pthread_barrier_t held;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static void read_a_pipe(void)
{
	char bytes[8] = "";
	ssize_t got = read(read_pipe[0], bytes, sizeof bytes);
	expect(got == 5 && !memcmp(bytes, "hello", 5), "read: %zd, %s", got,
	       got < 0 ? strerror(errno) : bytes);
}
static void readv_a_pipe(void)
{
	char bytes[8] = "";
	ssize_t got = syscall(SYS_readv, readv_pipe[0], &(struct {
				      void *base;
				      size_t size;
			      }){bytes, 8},
			      1);
	expect(got == 5 && !memcmp(bytes, "readv", 5), "readv: %zd, %s", got,
	       got < 0 ? strerror(errno) : bytes);
}
static void write_a_full_pipe(void)
{
	ssize_t put = write(write_pipe[1], "tail", 4);
	expect(put == 4, "write to a full pipe: %zd, %s", put, strerror(errno));
}
static void poll_a_pipe(void)
{
	struct pollfd set = {.fd = poll_pipe[0], .events = POLLIN};
	int got = poll(&set, 1, -1);
	expect(got == 1 && set.revents == POLLIN, "poll: %d, events %x, %s", got, set.revents,
	       strerror(errno));
}
static void epoll_an_event(void)
{
	struct epoll_event seen = {0};
	int got;
	while ((got = epoll_wait(epoll, &seen, 1, -1)) < 0 && errno == EINTR)
		continue;
	expect(got == 1 && seen.data.u64 == 0x1122334455667788, "epoll_wait: %d, data %lx, %s", got,
	       (unsigned long)seen.data.u64, strerror(errno));
}
static void accept_a_client(void)
{
	int got = accept(listener, NULL, NULL);
	expect(got >= 0, "accept: %s", strerror(errno));
	close(got);
}
static void receive_a_message(void)
{
	char bytes[8] = "";
	ssize_t got = recv(pair[0], bytes, sizeof bytes, 0);
	expect(got == 5 && !memcmp(bytes, "there", 5), "recv: %zd, %s", got,
	       got < 0 ? strerror(errno) : bytes);
}
static void read_an_eventfd(void)
{
	uint64_t value = 0;
	ssize_t got = read(event, &value, 8);
	expect(got == 8 && value == 42, "eventfd: %zd, value %lu, %s", got, value, strerror(errno));
}
static void wait_for_a_child(void)
{
	int status = 0;
	pid_t got = wait4(child, &status, 0, NULL);
	expect(got == child && WIFEXITED(status) && WEXITSTATUS(status) == 7, "wait4: %d, status %x, %s", got,
	       status, strerror(errno));
}
static void wait_by_id(void)
{
	siginfo_t info = {0};
	int got = waitid(P_PID, other_child, &info, WEXITED);
	expect(!got && info.si_pid == other_child && info.si_status == SIGKILL,
	       "waitid: %d, pid %d, status %d, %s", got, info.si_pid, info.si_status, strerror(errno));
}
static void wait_on_a_futex(void)
{
	while (!__atomic_load_n(&word_to_wait_on, __ATOMIC_SEQ_CST)) {
		long got = syscall(SYS_futex, &word_to_wait_on, FUTEX_WAIT, 0, NULL, NULL, 0);
		expect(!got || errno == EAGAIN, "futex: %s", strerror(errno));
	}
}
static void lock_a_futex_pi(void)
{
	long got = syscall(SYS_futex, &lock_word, FUTEX_LOCK_PI, 0, NULL, NULL, 0);
	expect(!got, "futex with priority inheritance: %s", strerror(errno));
	expect((lock_word & FUTEX_TID_MASK) == own_tid(), "the lock's owner is %d",
	       lock_word & FUTEX_TID_MASK);
	syscall(SYS_futex, &lock_word, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0);
}
static void lock_a_mutex(void)
{
	int got = pthread_mutex_lock(&mutex);
	expect(!got, "mutex: %s", strerror(got));
	pthread_mutex_unlock(&mutex);
}
static void wait_for_a_signal(void)
{
	sigset_t set;
	siginfo_t info;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 1);
	int got;
	while ((got = sigwaitinfo(&set, &info)) < 0 && errno == EINTR)
		continue;
	expect(got == SIGRTMIN + 1 && info.si_int == 99, "sigwaitinfo: %d, %s", got, strerror(errno));
}
static volatile int handled;
static void handle(int number)
{
	handled = number;
}
static void suspend(void)
{
	sigset_t none, before, after;
	sigprocmask(SIG_BLOCK, NULL, &before);
	sigemptyset(&none);
	sigaddset(&none, GO);
	sigaddset(&none, SIGRTMIN + 1);
	int got = sigsuspend(&none);
	expect(got == -1 && errno == EINTR && handled == SIGUSR1, "sigsuspend: %d, handled %d", got, handled);
	sigprocmask(SIG_BLOCK, NULL, &after);
	expect(!memcmp(&before, &after, 8), "sigsuspend left another mask behind");
}
static void open_a_fifo(void)
{
	char byte = 0;
	int fd = open(in_dir("fifo"), O_RDONLY | O_CLOEXEC);
	expect(fd >= 0 && read(fd, &byte, 1) == 1 && byte == 'F', "open of a fifo: %d, %s", fd,
	       strerror(errno));
	close(fd);
}

static struct {
	const char *name;
	long call;
	void (*wait)(void);
} waits[] = {
	{"read", SYS_read, read_a_pipe},
	{"readv", SYS_readv, readv_a_pipe},
	{"write", SYS_write, write_a_full_pipe},
	{"poll", SYS_poll, poll_a_pipe},
	{"epoll_wait", SYS_epoll_wait, epoll_an_event},
	{"accept", SYS_accept, accept_a_client},
	{"recv", SYS_recvfrom, receive_a_message},
	{"eventfd", SYS_read, read_an_eventfd},
	{"wait4", SYS_wait4, wait_for_a_child},
	{"waitid", SYS_waitid, wait_by_id},
	{"futex", SYS_futex, wait_on_a_futex},
	{"futex pi", SYS_futex, lock_a_futex_pi},
	{"mutex", SYS_futex, lock_a_mutex},
	{"sigwaitinfo", SYS_rt_sigtimedwait, wait_for_a_signal},
	{"sigsuspend", SYS_rt_sigsuspend, suspend},
	{"open", SYS_openat, open_a_fifo},
};
enum { COUNT = sizeof waits / sizeof *waits };
static pthread_t threads[COUNT];

static void *run(void *argument)
{
	int number = (int)(intptr_t)argument;
	sleeps_in(own_tid(), waits[number].call);
	waits[number].wait();
	return NULL;
}

static pthread_t thread_of(void (*wait)(void))
{
	for (int k = 0; k < COUNT; k++)
		if (waits[k].wait == wait)
			return threads[k];
	abort();
}

static pid_t sleeper(void)
{
	pid_t pid = fork();
	if (!pid) {
		sigset_t set;
		int number;
		sigemptyset(&set);
		sigaddset(&set, SIGUSR1);
		sigwait(&set, &number);
		_exit(7);
	}
	return pid;
}

int main(void)
{
	begin();
	sigset_t blocked;
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR1);
	sigaddset(&blocked, SIGRTMIN + 1);
	sigprocmask(SIG_BLOCK, &blocked, NULL);
	signal(SIGUSR1, handle);
	child = sleeper();
	other_child = sleeper();
	sleeps_in(child, SYS_rt_sigtimedwait);
	sleeps_in(other_child, SYS_rt_sigtimedwait);
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof address;
	listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (bind(listener, (void *)&address, size) || listen(listener, 5) ||
	    getsockname(listener, (void *)&address, &size))
		give_up("listen");
	if (pipe(read_pipe) || pipe(write_pipe) || pipe(poll_pipe) || pipe(readv_pipe) ||
	    socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || mkfifo(in_dir("fifo"), 0600))
		give_up("pipes");
	for (size_t k = 0; k < sizeof written; k++)
		written[k] = (char)(k * 131 >> 3);
	if (write(write_pipe[1], written, sizeof written) != sizeof written)
		give_up("fill");
	event = eventfd(0, 0);
	epoll = epoll_create1(0);
	epoll_event = eventfd(0, 0);
	struct epoll_event watch = {.events = EPOLLIN, .data.u64 = 0x1122334455667788};
	epoll_ctl(epoll, EPOLL_CTL_ADD, epoll_event, &watch);
	lock_word = own_tid();
	pthread_mutex_lock(&mutex);
	pthread_barrier_init(&held, NULL, 2);
	for (int k = 0; k < COUNT; k++)
		pthread_create(&threads[k], NULL, run, (void *)(intptr_t)k);
	for (int all = 0; !all; sched_yield()) {
		pthread_mutex_lock(&faults_lock);
		all = sleeping_count == COUNT + 2;
		pthread_mutex_unlock(&faults_lock);
	}
	ready_and_wait();

	expect(write(read_pipe[1], "hello", 5) == 5, "write to the pipe: %s", strerror(errno));
	expect(write(readv_pipe[1], "readv", 5) == 5, "write to the other pipe: %s", strerror(errno));
	expect(write(poll_pipe[1], "x", 1) == 1, "write to the polled pipe: %s", strerror(errno));
	static char back[sizeof written + 4];
	size_t have = 0;
	while (have < sizeof back) {
		ssize_t got = read(write_pipe[0], back + have, sizeof back - have);
		if (got <= 0)
			break;
		have += (size_t)got;
	}
	expect(have == sizeof back && !memcmp(back, written, sizeof written) &&
		       !memcmp(back + sizeof written, "tail", 4),
	       "the full pipe held %zu bytes, or others", have);
	uint64_t value = 42;
	expect(write(event, &value, 8) == 8 && write(epoll_event, &value, 8) == 8, "eventfds: %s",
	       strerror(errno));
	int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	expect(!connect(client, (void *)&address, size), "connect: %s", strerror(errno));
	expect(send(pair[1], "there", 5, 0) == 5, "send: %s", strerror(errno));
	kill(child, SIGUSR1);
	kill(other_child, SIGKILL);
	__atomic_store_n(&word_to_wait_on, 1, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &word_to_wait_on, FUTEX_WAKE, 1, NULL, NULL, 0);
	expect(!syscall(SYS_futex, &lock_word, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0), "unlock: %s",
	       strerror(errno));
	pthread_mutex_unlock(&mutex);
	pthread_sigqueue(thread_of(wait_for_a_signal), SIGRTMIN + 1, (union sigval){.sival_int = 99});
	pthread_kill(thread_of(suspend), SIGUSR1);
	int fifo = open(in_dir("fifo"), O_WRONLY | O_CLOEXEC);
	expect(write(fifo, "F", 1) == 1, "write to the fifo: %s", strerror(errno));
	for (int k = 0; k < COUNT; k++)
		pthread_join(threads[k], NULL);
	return verdict();
}
