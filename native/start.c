/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The command `torpor`: starts the Python program torpor-cli, which pip has installed beside this one.
 *
 * Python itself changes what the job is to inherit before any code of a program runs: it ignores SIGPIPE and SIGXFSZ. So
 * this program notes which of them were ignored, and hands them on as `-X torpor-ignored=13,25`. And Python acts on the
 * variables that are meant for a job's Python (PYTHONHOME and the like): `-I` lets it ignore them.
 *
 * If the first lines of torpor-cli do not name a Python, torpor-cli is executed as it is.
 *
 * Freestanding, as init.c: so it starts in no time, and does not depend on the libc of the host where it was built.
 */
#include "bare.h"

#include <asm/errno.h>
#include <asm/signal.h>
#include <asm/unistd.h>
#include <linux/auxvec.h>

#define PATH_SIZE 4096 /* PATH_MAX */
#define ADDED 5	       /* words: the interpreter, three options, and a terminating NULL */

struct action { /* the kernel's own struct sigaction */
	void *handler;
	unsigned long flags;
	void *restorer;
	unsigned long mask;
};

static long length(const char *text)
{
	long size = 0;

	while (text[size])
		size++;
	return size;
}

/* Append a text to one of PATH_SIZE bytes; the rest is cut off. */
static void append(char *text, const char *more)
{
	long size = length(text);

	while (*more && size < PATH_SIZE - 1)
		text[size++] = *more++;
	text[size] = '\0';
}

static int is_ignored(int number)
{
	struct action now = {0};

	call(__NR_rt_sigaction, number, 0, (long)&now, sizeof(now.mask));
	return now.handler == (void *)1; /* SIG_IGN */
}

static const char *ignored_option(void)
{
	int pipe = is_ignored(SIGPIPE), size = is_ignored(SIGXFSZ);

	if (pipe && size)
		return "-Xtorpor-ignored=13,25";
	return pipe ? "-Xtorpor-ignored=13" : size ? "-Xtorpor-ignored=25" : "-Xtorpor-ignored=";
}

/*
 * Open torpor-cli: beside the path by which this program was executed, which may lead through symbolic links that outlive an
 * installation; else beside the program itself.
 */
static long open_script(const char *executed, char *path)
{
	long fd = -ENOENT, size;

	path[0] = '\0';
	if (executed) {
		append(path, executed);
		append(path, "-cli");
		fd = call(__NR_open, (long)path, 02000000 /* O_CLOEXEC */, 0, 0);
	}
	if (fd < 0) {
		size = call(__NR_readlink, (long)"/proc/self/exe", (long)path, PATH_SIZE - 1, 0);
		path[size > 0 ? size : 0] = '\0';
		append(path, "-cli");
		fd = call(__NR_open, (long)path, 02000000, 0, 0);
	}
	return fd;
}

static int is_python(const char *path)
{
	const char *name = path, *wanted = "python";

	for (; *path; path++)
		if (*path == '/')
			name = path + 1;
	while (*wanted)
		if (*name++ != *wanted++)
			return 0;
	return 1;
}

/*
 * Find the interpreter that a script names, and its option, which may be empty. Whether it is a Python. Installers write the
 * path of Python into the first line, also with blanks in it, or into a command of a shell if the kernel would not take it.
 */
static int find_python(long script, char *text, char **path, char **option)
{
	const char *by_shell = "#!/bin/sh\n'''exec' ";
	long size = call(__NR_pread64, script, (long)text, PATH_SIZE - 1, 0);
	char end = '\n', *at = text;

	text[size > 0 ? size : 0] = '\0';
	if (text[0] != '#' || text[1] != '!')
		return 0;
	while (*by_shell && *at == *by_shell)
		at++, by_shell++;
	if (!*by_shell)
		end = *at == '"' || *at == '\'' ? *at++ : ' ';
	else
		at = text + 2;
	*path = at;
	while (*at && *at != end)
		at++;
	*option = at;
	*at = '\0';
	if (call(__NR_access, (long)*path, 1 /* X_OK */, 0, 0) != 0) {
		for (at = *path; *at && *at != ' '; at++)
			;
		if (*at)
			*option = at + 1;
		*at = '\0';
	}
	return is_python(*path);
}

static _Noreturn void fail(const char *path)
{
	char text[PATH_SIZE];

	text[0] = '\0';
	append(text, "torpor: cannot start ");
	append(text, path);
	append(text, ": install torpor again\n");
	call(__NR_write, 2, (long)text, length(text), 0);
	for (;;)
		call(__NR_exit_group, 70, 0, 0, 0); /* docs/cli.md */
}

/* stack: argc, argv[], NULL, environment[], NULL, the auxiliary vector, as execve leaves it */
_Noreturn __attribute__((used)) void torpor_start(long *stack)
{
	long argc = stack[0], size = 0;
	char **argv = (char **)(stack + 1), **environment = argv + argc + 1;
	char *words[argc + ADDED], path[PATH_SIZE], text[PATH_SIZE], *python, *option;
	const char *executed = 0;
	long *auxv, script;

	for (auxv = (long *)environment; *auxv; auxv++)
		;
	for (auxv++; *auxv != AT_NULL; auxv += 2)
		if (*auxv == AT_EXECFN)
			executed = (const char *)auxv[1];
	script = open_script(executed, path);
	if (script < 0)
		fail(path);
	if (find_python(script, text, &python, &option)) {
		words[size++] = python;
		words[size++] = "-I";
		words[size++] = (char *)ignored_option();
		if (*option)
			words[size++] = option;
		words[size++] = path;
		for (long n = 1; n < argc; n++)
			words[size++] = argv[n];
		words[size] = 0;
		call(__NR_execve, (long)words[0], (long)words, (long)environment, 0);
	}
	words[0] = path;
	for (size = 1; size < argc; size++)
		words[size] = argv[size];
	words[size] = 0;
	call(__NR_execve, (long)path, (long)words, (long)environment, 0);
	fail(path);
}

__asm__(".globl _start\n"
	"_start:\n"
	"	xorl %ebp, %ebp\n"
	"	movq %rsp, %rdi\n"
	"	andq $-16, %rsp\n"
	"	call torpor_start\n");
