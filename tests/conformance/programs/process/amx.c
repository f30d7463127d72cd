/* The AMX tile registers: 8 KiB of state that a program must ask for before it may use them. */
#include "ready.h"

enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };

static volatile int32_t stop;
static volatile int32_t spinning;

static struct {
	uint8_t palette, start_row, reserved[14];
	uint16_t columns[16];
	uint8_t rows[16];
} __attribute__((aligned(64))) config, config_after;

static uint8_t in[8][1024] __attribute__((aligned(64))), out[8][1024] __attribute__((aligned(64)));

__attribute__((target("amx-tile"))) static void *tiles(void *unused)
{
	__asm__ volatile("ldtilecfg %[config]\n\t"
			 "tileloadd (%[in],%[stride],1), %%tmm0\n\t"
			 "tileloadd 1024(%[in],%[stride],1), %%tmm1\n\t"
			 "tileloadd 7168(%[in],%[stride],1), %%tmm7\n\t"
			 "lock incl spinning(%%rip)\n"
			 "1:\n\t"
			 "cmpl $0, stop(%%rip)\n\t"
			 "je 1b\n\t"
			 "sttilecfg %[after]\n\t"
			 "tilestored %%tmm0, (%[out],%[stride],1)\n\t"
			 "tilestored %%tmm1, 1024(%[out],%[stride],1)\n\t"
			 "tilestored %%tmm7, 7168(%[out],%[stride],1)\n\t"
			 "tilerelease\n\t"
			 : [after] "=m"(config_after)
			 : [config] "m"(config), [in] "r"(in), [out] "r"(out), [stride] "r"(64L)
			 : "memory", "cc");
	expect(!memcmp(&config, &config_after, sizeof config), "the tile configuration changed");
	expect(!memcmp(in[0], out[0], 2048) && !memcmp(in[7], out[7], 1024), "a tile changed");
	return unused;
}

int main(void)
{
	begin();
	if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)) {
		ready_and_wait(); /* a processor or kernel without AMX: nothing to lose */
		return verdict();
	}
	config.palette = 1;
	for (int k = 0; k < 8; k++) {
		config.columns[k] = 64;
		config.rows[k] = 16;
		for (int byte = 0; byte < 1024; byte++)
			in[k][byte] = (uint8_t)(k * 31 + byte * 7 + byte / 64);
	}
	pthread_t thread;
	pthread_create(&thread, NULL, tiles, NULL);
	while (!spinning)
		sched_yield();
	ready_and_wait();
	stop = 1;
	pthread_join(thread, NULL);
	return verdict();
}
