/* The programs' side of the harness: say that the state stands, wait for the word, judge oneself.
 *
 * Nothing here keeps a descriptor open: what is said goes into files that are closed again, and the word to
 * go on is a signal, so that a program's image holds the program's own state and nothing of the harness. */
#ifndef TORPOR_CONFORMANCE_READY_H
#define TORPOR_CONFORMANCE_READY_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { GO = 12, MAX_SLEEPING = 128, PAGE = 4096 }; /* GO is SIGUSR2 */

/* What the harness did between ready and the word to go on. */
struct word {
	bool killed;	  /* the processes are restored ones; else they are the same that said ready */
	long long frozen; /* nanoseconds in which the program could not run, at most */
};

static char faults[16384];
static pthread_mutex_t faults_lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
	pid_t tid;
	long call;
} sleeping[MAX_SLEEPING];
static int sleeping_count;

static inline pid_t own_tid(void)
{
	return (pid_t)syscall(SYS_gettid);
}

static inline long long now_ns(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* Notes a fault unless `holds`. */
__attribute__((format(printf, 2, 3))) static inline void expect(bool holds, const char *format, ...)
{
	if (holds)
		return;
	char line[1024];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(line, sizeof line - 1, format, arguments);
	va_end(arguments);
	strcat(line, "\n");
	pthread_mutex_lock(&faults_lock);
	if (strlen(faults) + strlen(line) < sizeof faults)
		strcat(faults, line);
	pthread_mutex_unlock(&faults_lock);
}

/* Ends the program at once: its preparation failed, which is a fault of the test. */
__attribute__((format(printf, 1, 2), noreturn)) static inline void give_up(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fprintf(stderr, ": %s\n", strerror(errno));
	exit(3);
}

enum { UNAVAILABLE = 77 };

/* Ends the program at once: this machine lacks what the program is about. */
__attribute__((noreturn)) static inline void unavailable(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(UNAVAILABLE);
}

static inline const char *in_dir(const char *name)
{
	static __thread char path[PATH_MAX];
	const char *dir = getenv("CONFORM_DIR");
	if (!dir)
		give_up("CONFORM_DIR is not set");
	snprintf(path, sizeof path, "%s/%s", dir, name);
	return path;
}

static inline void write_file(const char *name, const char *text)
{
	char draft[PATH_MAX + 16];
	snprintf(draft, sizeof draft, "%s.draft", in_dir(name));
	int fd = open(draft, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		give_up("write %s", draft);
	close(fd);
	if (rename(draft, in_dir(name)))
		give_up("rename %s", draft);
}

/* To be called first: the word to go on stays blocked in every thread but the one that waits for it. */
static inline void begin(void)
{
	sigset_t go;
	sigemptyset(&go);
	sigaddset(&go, GO);
	sigprocmask(SIG_BLOCK, &go, NULL);
}

/* The harness takes no checkpoint before thread `tid` sleeps in system call `call`. */
static inline void sleeps_in(pid_t tid, long call)
{
	pthread_mutex_lock(&faults_lock);
	if (sleeping_count == MAX_SLEEPING)
		give_up("more than %d sleepers", MAX_SLEEPING);
	sleeping[sleeping_count].tid = tid;
	sleeping[sleeping_count++].call = call;
	pthread_mutex_unlock(&faults_lock);
}

static inline void ready(void)
{
	char text[MAX_SLEEPING * 32] = "";
	for (int k = 0; k < sleeping_count; k++)
		sprintf(text + strlen(text), "%d %ld\n", sleeping[k].tid, sleeping[k].call);
	write_file("ready", text);
}

static inline struct word await_go(void)
{
	sigset_t go;
	int signal_number;
	sigemptyset(&go);
	sigaddset(&go, GO);
	if (sigwait(&go, &signal_number))
		give_up("sigwait");
	FILE *file = fopen(in_dir("go"), "re");
	char how[16];
	struct word word = {false, 0};
	if (!file || fscanf(file, "%15s %lld", how, &word.frozen) != 2)
		give_up("read go");
	fclose(file);
	word.killed = !strcmp(how, "killed");
	return word;
}

static inline struct word ready_and_wait(void)
{
	sleeps_in(own_tid(), SYS_rt_sigtimedwait);
	ready();
	return await_go();
}

/* Writes the judgement; the exit status that goes with it. */
static inline int verdict(void)
{
	write_file("verdict", *faults ? faults : "ok");
	return *faults ? 1 : 0;
}

#endif
