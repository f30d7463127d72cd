/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The batch interpreter: runs a table of system calls inside another process.
 *
 * It is copied into a mapping of that process and entered with r14 = the table, r12 = the first entry to run.
 * It keeps to registers, calls nothing and needs no stack, so the thread's rsp may point at the signal frame that
 * the table's last entry, rt_sigreturn, takes the thread back with. An entry is 64 bytes, little endian:
 *
 *	u16 nr        system call number
 *	u16 flags     bits 0-5: argument i is not a value but the index of an entry whose result it is;
 *	              bit 6: on an error go to entry on_error; bit 7: on a result of 0 go to entry on_zero
 *	              (the child's side of a clone); bit 8: after this entry stop with int3
 *	u16 on_error
 *	u16 on_zero
 *	u64 args[6]
 *	s64 result    written by the interpreter
 *
 * Only rcx, r11 and rax are clobbered by the kernel (x86-64 ABI), so r12-r15 hold the state.
 */
#include "torpor.h"

__asm__(".pushsection .rodata\n"
	".balign 16\n"
	"tp_batch_begin:\n"
	"next:\n"
	"	movzwl 2(%r12), %r13d\n"
	"	movq 8(%r12), %rdi\n"
	"	movq 16(%r12), %rsi\n"
	"	movq 24(%r12), %rdx\n"
	"	movq 32(%r12), %r10\n"
	"	movq 40(%r12), %r8\n"
	"	movq 48(%r12), %r9\n"
	"	testl $0x3f, %r13d\n"
	"	jz 2f\n"
	".macro reference bit reg\n"
	"	btl $\\bit, %r13d\n"
	"	jnc 1f\n"
	"	shlq $6, %\\reg\n"
	"	movq 56(%r14,%\\reg), %\\reg\n"
	"1:\n"
	".endm\n"
	"	reference 0 rdi\n"
	"	reference 1 rsi\n"
	"	reference 2 rdx\n"
	"	reference 3 r10\n"
	"	reference 4 r8\n"
	"	reference 5 r9\n"
	"2:	movzwl (%r12), %eax\n"
	"	syscall\n"
	"	testl $0x80, %r13d\n"
	"	jz 3f\n"
	"	testq %rax, %rax\n"
	"	jnz 3f\n"
	/* The child's side: its result is 0, and it must not overwrite the parent's where memory is shared. */
	"	movzwl 6(%r12), %r12d\n"
	"	jmp 4f\n"
	"3:	movq %rax, 56(%r12)\n"
	"	btl $8, %r13d\n"
	"	jc 5f\n"
	"	testl $0x40, %r13d\n"
	"	jz 6f\n"
	"	cmpq $-4095, %rax\n"
	"	jb 6f\n"
	"	movzwl 4(%r12), %r12d\n"
	"4:	shlq $6, %r12\n"
	"	addq %r14, %r12\n"
	"	jmp next\n"
	"5:	int3\n"
	"6:	addq $64, %r12\n"
	"	jmp next\n"
	"tp_batch_finish:\n"
	".popsection\n");

extern const unsigned char tp_batch_begin[], tp_batch_finish[];

const void *tp_batch_code(void)
{
	return tp_batch_begin;
}

size_t tp_batch_size(void)
{
	return (size_t)(tp_batch_finish - tp_batch_begin);
}
