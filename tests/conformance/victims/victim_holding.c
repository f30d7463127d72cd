/* The victim with one child of its kind and one of every common thing that a process holds: what is in it is looked at
 * in the end. */
#define CHILDREN 1
#define HOLDS
#define REST 20000000
static void hold(void), still_held(void);
#include "victim.c"

#include <arpa/inet.h>
#include <pty.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

enum { SHARED = 3 * 4096 };

static int pair[2], pipe_ends[2], listener, master, slave, event, timer, memory, file;
static char *shared;

static void hold(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	const struct itimerspec far = {.it_value.tv_sec = 100000};
	sigset_t none;

	sigemptyset(&none);
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || pipe(pipe_ends) || openpty(&master, &slave, NULL, NULL, NULL))
		give_up("pairs");
	listener = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 5))
		give_up("a listener");
	event = eventfd(4711, 0);
	timer = timerfd_create(CLOCK_MONOTONIC, 0);
	memory = memfd_create("held", 0);
	file = open(in_dir("file"), O_RDWR | O_CREAT, 0600);
	shared = mmap(NULL, SHARED, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (event < 0 || timer < 0 || memory < 0 || file < 0 || signalfd(-1, &none, 0) < 0 || shared == MAP_FAILED ||
	    timerfd_settime(timer, 0, &far, NULL))
		give_up("others");
	memset(shared, 'm', SHARED);
	const int written[] = {pair[0], pipe_ends[1], memory, file};
	for (size_t k = 0; k < sizeof written / sizeof *written; k++)
		if (write(written[k], "here", 4) != 4)
			give_up("write");
}

static void still_held(void)
{
	const int readable[] = {pair[1], pipe_ends[0]};
	const char *const names[] = {"the socket", "the pipe"};
	struct itimerspec left = {0};
	uint64_t count = 0;
	char text[8] = "";

	for (int k = 0; k < 2; k++)
		expect(read(readable[k], text, 4) == 4 && !memcmp(text, "here", 4), "%s has lost its bytes", names[k]);
	expect(read(event, &count, 8) == 8 && count == 4711, "the eventfd counts %lu", count);
	expect(!timerfd_gettime(timer, &left) && left.it_value.tv_sec > 90000, "the timer is not set");
	expect(lseek(memory, 0, SEEK_CUR) == 4 && lseek(file, 0, SEEK_CUR) == 4, "a position is lost");
	expect(pread(memory, text, 4, 0) == 4 && !memcmp(text, "here", 4), "the memfd is not as it was");
	for (int k = 0; k < SHARED; k++)
		expect(shared[k] == 'm', "shared memory differs at %d", k);
}
