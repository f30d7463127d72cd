/* Rewrites as much memory as its argument says (MiB) for ever, and says "ready" when all of it is there. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *volatile memory; /* which somebody may look at */

int main(int argc, char **argv)
{
	size_t size = argc > 1 ? (size_t)atoi(argv[1]) << 20 : 0;
	memory = malloc(size);
	if (!memory)
		return 2;
	memset(memory, 'r', size);
	puts("ready");
	fflush(stdout);
	for (int round = 0;; round++)
		memset(memory, round, size);
}
