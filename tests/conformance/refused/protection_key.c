/* A protection key that no memory has yet (pkey_alloc(2)). */
#include "../c/ready.h"

int main(void)
{
	begin();
	int key = pkey_alloc(0, PKEY_DISABLE_WRITE);
	if (key < 0)
		unavailable("pkey_alloc");
	ready_and_wait();
	expect(pkey_get(key) == PKEY_DISABLE_WRITE, "the key's rights are %d", pkey_get(key));
	expect(pkey_alloc(0, 0) == key + 1, "another key is taken");
	return verdict();
}
