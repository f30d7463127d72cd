/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A SPANK plugin that gives sbatch an option:
 *
 *	sbatch --torpor[=EVERY] ...
 *
 * which submits the job as `torpor sbatch [--every=EVERY] -- ...` does. That is what it does: the program sbatch becomes
 * `torpor sbatch` with the same arguments, which refuses what cannot be kept, and takes the option out before it calls
 * sbatch again. Nothing of it runs anywhere else, in slurmd or in a job.
 *
 * plugstack.conf:
 *
 *	optional /usr/lib/slurm/torpor.so command=/opt/torpor/bin/torpor
 *
 * Without command= it is looked for in PATH. Built against the site's own headers, for each version of Slurm:
 * docs/slurm-admin.md.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <slurm/spank.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

SPANK_PLUGIN(torpor, 1)

#define COMMAND "command="
/* The PID of the sbatch that became `torpor sbatch`, whose child must not do so again. */
#define TAKEN "TORPOR_SBATCH_PID"

static int asked;

static int take_option(int value, const char *every, int remote)
{
	(void)value;
	(void)every; /* `torpor sbatch` finds it where it was written */
	asked = !remote;
	return 0;
}

static struct spank_option torpor_option = {
	.name = "torpor",
	.arginfo = "EVERY",
	.usage =
		"lose nothing when preempted: save the job, requeue it, and go on where it was; also every EVERY (10m)",
	.has_arg = 2, /* it may have a value */
	.val = 0,
	.cb = take_option,
};

/* The arguments of this process as they were given, behind the names of `torpor sbatch`; NULL and errno if that fails. */
static char **arguments_for(char *command)
{
	size_t size = 0, used = 0, count = 3;
	char *text = NULL, **arguments = NULL;
	FILE *file = fopen("/proc/self/cmdline", "re");
	int got;

	if (!file)
		return NULL;
	while ((got = getc(file)) != EOF) {
		if (used == size) {
			char *larger = realloc(text, size += 4096);

			if (!larger)
				goto out;
			text = larger;
		}
		text[used++] = (char)got;
		count += !got;
	}
	if (!used || text[used - 1] || !(arguments = calloc(count + 1, sizeof(*arguments))))
		goto out;
	arguments[0] = command;
	arguments[1] = "sbatch";
	arguments[2] = "--";
	count = 3;
	for (char *word = text + strlen(text) + 1; word < text + used; word += strlen(word) + 1)
		arguments[count++] = word;
out:
	fclose(file);
	return arguments;
}

int slurm_spank_init(spank_t spank, int ac, char **av)
{
	(void)ac;
	(void)av;
	if (spank_context() != S_CTX_ALLOCATOR || strcmp(program_invocation_short_name, "sbatch"))
		return 0; /* salloc's jobs cannot be requeued */
	return spank_option_register(spank, &torpor_option) == ESPANK_SUCCESS ? 0 : -1;
}

/* After all options are known, and before anything is submitted. It does not return to a job that would not be kept,
 * whether the site calls the plugin required or optional. */
int slurm_spank_init_post_opt(spank_t spank, int ac, char **av)
{
	char *command = "torpor", pid[24], **arguments;
	const char *taken = getenv(TAKEN);

	(void)spank;
	if (!asked)
		return 0;
	for (int i = 0; i < ac; i++)
		if (!strncmp(av[i], COMMAND, strlen(COMMAND)))
			command = av[i] + strlen(COMMAND);
	if (taken && atol(taken) == (long)getppid()) {
		slurm_error("torpor: write --torpor out in full");
		exit(1);
	}
	snprintf(pid, sizeof(pid), "%ld", (long)getpid());
	arguments = arguments_for(command);
	if (arguments && !setenv(TAKEN, pid, 1))
		execvp(command, arguments);
	slurm_error("torpor: nothing was submitted: %s cannot be run: %s", command, strerror(errno));
	exit(1);
}
