/* Every register a thread can see: general, x87, MXCSR, SSE, AVX, AVX-512 and its masks. The threads hold
 * known values in them and spin in user space, so the checkpoint meets them at an arbitrary instruction. */
#include "ready.h"

static volatile int32_t stop;
static volatile int32_t spinning;

static const uint64_t pattern[16] = {
	0x0123456789abcdef, 0xfedcba9876543210, 0x8000000000000001, 0x7fffffffffffffff,
	0xdeadbeefcafebabe, 0x5555555555555555, 0xaaaaaaaaaaaaaaaa, 0x00000000ffffffff,
	0xffffffff00000000, 0x1111111122222222, 0x3333333344444444, 0x1f2e3d4c5b6a7988,
	0x0f0f0f0f0f0f0f0f, 0xf0f0f0f0f0f0f0f0, 0x0000000000000001, 0x8899aabbccddeeff};

static void *general(void *unused)
{
	uint64_t seen[14];
	uint64_t flags;
	__asm__ volatile("push %%rbp\n\t"
			 "push %[seen]\n\t"
			 "lock incl spinning(%%rip)\n\t"
			 "movabs $0x0123456789abcdef, %%rax\n\t"
			 "movabs $0xfedcba9876543210, %%rbx\n\t"
			 "movabs $0x8000000000000001, %%rcx\n\t"
			 "movabs $0x7fffffffffffffff, %%rdx\n\t"
			 "movabs $0xdeadbeefcafebabe, %%rsi\n\t"
			 "movabs $0x5555555555555555, %%rdi\n\t"
			 "movabs $0xaaaaaaaaaaaaaaaa, %%rbp\n\t"
			 "movabs $0x00000000ffffffff, %%r8\n\t"
			 "movabs $0xffffffff00000000, %%r9\n\t"
			 "movabs $0x1111111122222222, %%r10\n\t"
			 "movabs $0x3333333344444444, %%r11\n\t"
			 "movabs $0x1f2e3d4c5b6a7988, %%r12\n\t"
			 "movabs $0x0f0f0f0f0f0f0f0f, %%r13\n\t"
			 "movabs $0xf0f0f0f0f0f0f0f0, %%r14\n\t"
			 "std\n"
			 "1:\n\t"
			 "cmpl $0, stop(%%rip)\n\t"
			 "je 1b\n\t"
			 "mov (%%rsp), %%r15\n\t" /* the only register that is not looked at */
			 "mov %%rax, 0(%%r15)\n\t"
			 "mov %%rbx, 8(%%r15)\n\t"
			 "mov %%rcx, 16(%%r15)\n\t"
			 "mov %%rdx, 24(%%r15)\n\t"
			 "mov %%rsi, 32(%%r15)\n\t"
			 "mov %%rdi, 40(%%r15)\n\t"
			 "mov %%rbp, 48(%%r15)\n\t"
			 "mov %%r8, 56(%%r15)\n\t"
			 "mov %%r9, 64(%%r15)\n\t"
			 "mov %%r10, 72(%%r15)\n\t"
			 "mov %%r11, 80(%%r15)\n\t"
			 "mov %%r12, 88(%%r15)\n\t"
			 "mov %%r13, 96(%%r15)\n\t"
			 "mov %%r14, 104(%%r15)\n\t"
			 "pushf\n\t"
			 "pop %%rax\n\t"
			 "cld\n\t"
			 "pop %%rbx\n\t"
			 "pop %%rbp\n\t"
			 : "=a"(flags)
			 : [seen] "r"(seen)
			 : "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
			   "r15", "memory", "cc");
	for (int k = 0; k < 14; k++)
		expect(seen[k] == pattern[k], "general register %d: %lx became %lx", k, pattern[k], seen[k]);
	expect(flags & 0x400, "the direction flag was lost: flags are %lx", flags);
	return unused;
}

static void *x87(void *unused)
{
	static uint8_t before[512] __attribute__((aligned(64))), after[512] __attribute__((aligned(64)));
	uint32_t mxcsr = 0x5f80; /* round towards plus infinity is 0x4000 */
	uint16_t control = 0x0e7f;
	__asm__ volatile("fninit\n\t"
			 "fldcw %[control]\n\t"
			 "fld1\n\t"
			 "fldpi\n\t"
			 "fldl2e\n\t"
			 "ldmxcsr %[mxcsr]\n\t"
			 "fxsave64 %[before]\n\t"
			 "lock incl spinning(%%rip)\n"
			 "1:\n\t"
			 "cmpl $0, stop(%%rip)\n\t"
			 "je 1b\n\t"
			 "fxsave64 %[after]\n\t"
			 "fninit\n\t"
			 : [before] "=m"(before), [after] "=m"(after)
			 : [control] "m"(control), [mxcsr] "m"(mxcsr)
			 : "cc", "memory");
	/* Bytes 5 and 8..23 are reserved or the last instruction's address, which processors may drop. */
	expect(!memcmp(before, after, 5), "the x87 control, status or tag word changed");
	expect(!memcmp(before + 24, after + 24, 4), "MXCSR changed");
	expect(!memcmp(before + 32, after + 32, 128), "the x87 stack changed");
	expect(!memcmp(before + 160, after + 160, 256), "an SSE register changed");
	return unused;
}

#define FILL4(move, register, stride, a, b, c, d)                                                            \
	move " " #a "*" #stride "(%[in]), %%" register #a "\n\t" move " " #b "*" #stride                     \
							  "(%[in]), %%" register #b                          \
		"\n\t" move " " #c "*" #stride "(%[in]), %%" register #c "\n\t" move " " #d "*" #stride      \
									 "(%[in]), %%" register #d "\n\t"
#define SAVE4(move, register, stride, a, b, c, d)                                                            \
	move " %%" register #a ", " #a "*" #stride "(%[out])\n\t" move " %%" register #b                     \
		", " #b "*" #stride "(%[out])\n\t" move " %%" register #c                                    \
		", " #c "*" #stride "(%[out])\n\t" move " %%" register #d ", " #d "*" #stride "(%[out])\n\t"
#define LOW16(what, move, register, stride)                                                                  \
	what(move, register, stride, 0, 1, 2, 3) what(move, register, stride, 4, 5, 6, 7)                    \
		what(move, register, stride, 8, 9, 10, 11) what(move, register, stride, 12, 13, 14, 15)
#define HIGH16(what, move, register, stride)                                                                 \
	what(move, register, stride, 16, 17, 18, 19) what(move, register, stride, 20, 21, 22, 23)            \
		what(move, register, stride, 24, 25, 26, 27) what(move, register, stride, 28, 29, 30, 31)
#define SPIN "lock incl spinning(%%rip)\n1:\n\tcmpl $0, stop(%%rip)\n\tje 1b\n\t"
#define LOW_NAMES                                                                                            \
	"xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",    \
		"xmm12", "xmm13", "xmm14", "xmm15"
#define HIGH_NAMES                                                                                           \
	"xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26",   \
		"xmm27", "xmm28", "xmm29", "xmm30", "xmm31"

static void fill(uint8_t *bytes, size_t size, uint32_t seed)
{
	for (size_t k = 0; k < size; k++) {
		seed = seed * 1664525 + 1013904223;
		bytes[k] = (uint8_t)(seed >> 24);
	}
}

__attribute__((target("avx"))) static void *avx(void *unused)
{
	uint8_t in[16 * 32] __attribute__((aligned(64))), out[16 * 32] __attribute__((aligned(64)));
	fill(in, sizeof in, 1);
	__asm__ volatile(LOW16(FILL4, "vmovups", "ymm", 32) SPIN LOW16(SAVE4, "vmovups", "ymm", 32)
			 :
			 : [in] "r"(in), [out] "r"(out)
			 : LOW_NAMES, "memory", "cc");
	expect(!memcmp(in, out, sizeof in), "an AVX register changed");
	return unused;
}

__attribute__((target("avx512f,avx512bw"))) static void *avx512(void *unused)
{
	uint8_t in[32 * 64] __attribute__((aligned(64))), out[32 * 64] __attribute__((aligned(64)));
	uint64_t masks[8];
	fill(in, sizeof in, 2);
	__asm__ volatile(
		LOW16(FILL4, "vmovups", "zmm", 64)
			HIGH16(FILL4, "vmovups", "zmm",
			       64) "kmovq 8(%[in]), %%k1\n\t"
				   "kmovq 16(%[in]), %%k2\n\t"
				   "kmovq 24(%[in]), %%k3\n\t"
				   "kmovq 32(%[in]), %%k4\n\t"
				   "kmovq 40(%[in]), %%k5\n\t"
				   "kmovq 48(%[in]), %%k6\n\t"
				   "kmovq 56(%[in]), %%k7\n\t" SPIN LOW16(SAVE4, "vmovups", "zmm", 64)
					   HIGH16(SAVE4, "vmovups", "zmm", 64) "kmovq %%k1, 8(%[masks])\n\t"
									       "kmovq %%k2, 16(%[masks])\n\t"
									       "kmovq %%k3, 24(%[masks])\n\t"
									       "kmovq %%k4, 32(%[masks])\n\t"
									       "kmovq %%k5, 40(%[masks])\n\t"
									       "kmovq %%k6, 48(%[masks])\n\t"
									       "kmovq %%k7, 56(%[masks])\n\t"
		:
		: [in] "r"(in), [out] "r"(out), [masks] "r"(masks)
		: LOW_NAMES, HIGH_NAMES, "k1", "k2", "k3", "k4", "k5", "k6", "k7", "memory", "cc");
	expect(!memcmp(in, out, sizeof in), "an AVX-512 register changed");
	expect(!memcmp(in + 8, masks + 1, 56), "an AVX-512 mask register changed");
	return unused;
}

int main(void)
{
	begin();
	pthread_t threads[4];
	int count = 0;
	pthread_attr_t together; /* on one processor: who works beside us needs the others */
	cpu_set_t one;
	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	pthread_attr_init(&together);
	pthread_attr_setaffinity_np(&together, sizeof one, &one);
	pthread_create(&threads[count++], &together, general, NULL);
	pthread_create(&threads[count++], &together, x87, NULL);
	if (__builtin_cpu_supports("avx"))
		pthread_create(&threads[count++], &together, avx, NULL);
	if (__builtin_cpu_supports("avx512bw"))
		pthread_create(&threads[count++], &together, avx512, NULL);
	while (spinning < count)
		sched_yield();
	ready_and_wait();
	stop = 1;
	for (int k = 0; k < count; k++)
		pthread_join(threads[k], NULL);
	return verdict();
}
