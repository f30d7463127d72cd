/* build: -static */
/* A program without a dynamic linker: nothing of the engine may rely on one, or on libc's addresses. */
#include "ready.h"

int main(void)
{
	begin();
	char *memory = malloc(100000);
	memset(memory, 7, 100000);
	ready_and_wait();
	for (int k = 0; k < 100000; k++)
		expect(memory[k] == 7, "byte %d changed", k);
	return verdict();
}
