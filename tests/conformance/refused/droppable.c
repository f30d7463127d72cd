/* Memory that the kernel may drop (MAP_DROPPABLE, Linux 6.11): secrets that must not reach a disk. */
#include "../c/ready.h"

#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 0x08
#endif

int main(void)
{
	begin();
	char *at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_DROPPABLE | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED)
		unavailable("MAP_DROPPABLE");
	strcpy(at, "secret");
	ready_and_wait();
	expect(!strcmp(at, "secret") || !*at, "the memory holds something else");
	return verdict();
}
