/* SPDX-License-Identifier: BSD-3-Clause */
/* System calls of programs without a libc: torpor-init and torpor. */
#pragma once

static inline long call(long nr, long a, long b, long c, long d)
{
	long result;
	register long r10 __asm__("r10") = d;

	__asm__ volatile("syscall" : "=a"(result) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
	return result;
}
