/* Memory that the kernel may drop (MAP_DROPPABLE, Linux 6.11): secrets that must not reach a disk. The mapping is
 * kept, its content is not. */
#include "ready.h"

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
	struct word word = ready_and_wait();
	expect(!strcmp(at, "secret") || !*at, "the memory holds something else");
	expect(!word.killed || !*at, "the secret was kept in an image");
	strcpy(at, "again");
	expect(!strcmp(at, "again"), "the memory is not writable");
	expect(madvise(at, PAGE, MADV_KEEPONFORK) && errno == EINVAL, "the memory is not droppable any more");
	return verdict();
}
