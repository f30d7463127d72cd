/* Programs that have unmapped their vDSO, as valgrind and some sandboxes do: all of it, all but a page of its data, its
 * data alone. And one that has moved it. */
#include "children.h"

enum { PARTS = 3 };

static const char *const names[PARTS] = {"[vvar]", "[vvar_vclock]", "[vdso]"};

struct part {
	char *start, *end;
};

static void find(struct part *parts)
{
	memset(parts, 0, PARTS * sizeof *parts);
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[512];
	while (maps && fgets(line, sizeof line, maps))
		for (int k = 0; k < PARTS; k++)
			if (strstr(line, names[k]) && sscanf(line, "%p-%p", (void **)&parts[k].start, (void **)&parts[k].end) != 2)
				give_up("maps");
	if (maps)
		fclose(maps);
}

static void take_away(const struct part *part)
{
	if (part->start && munmap(part->start, part->end - part->start))
		give_up("munmap");
}

static void unmap_all(const struct part *parts)
{
	for (int k = 0; k < PARTS; k++)
		take_away(&parts[k]);
}

static void unmap_most(const struct part *parts)
{
	take_away(&parts[0]);
	take_away(&parts[2]);
}

static void unmap_data(const struct part *parts)
{
	take_away(&parts[0]);
	take_away(&parts[1]);
}

static void move(const struct part *parts)
{
	char *base = parts[0].start, *to = (char *)0x600000000000;
	for (int k = 0; k < PARTS; k++) {
		size_t size = parts[k].end - parts[k].start;
		if (size && mremap(parts[k].start, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to + (parts[k].start - base)) ==
				    MAP_FAILED)
			give_up("mremap");
	}
}

static void (*const changes[])(const struct part *) = {unmap_all, unmap_most, unmap_data, move};
static struct part before[PARTS];

static void make(int number)
{
	find(before);
	changes[number](before);
	find(before);
}

static bool holds(void)
{
	struct part parts[PARTS];
	find(parts);
	return !memcmp(before, parts, sizeof parts);
}

int main(void)
{
	return judged_in_children(sizeof changes / sizeof *changes, make, holds);
}
