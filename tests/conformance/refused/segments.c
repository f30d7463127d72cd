/* A segment of its own (modify_ldt), as of programs that run 16-bit or 32-bit code beside theirs. */
#include "ready.h"

#include <asm/ldt.h>

int main(void)
{
	begin();
	struct user_desc segment = {.entry_number = 3, .base_addr = 0x1000, .limit = 0xfff, .seg_32bit = 1, .useable = 1};
	if (syscall(SYS_modify_ldt, 1, &segment, sizeof segment))
		unavailable("modify_ldt");
	ready_and_wait();
	return verdict();
}
