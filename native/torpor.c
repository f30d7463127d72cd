/* SPDX-License-Identifier: BSD-3-Clause */
#include "torpor.h"

#include <cpuid.h>
#include <errno.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

long tp_syscall(long nr, long a, long b, long c, long d, long e, long f)
{
	long result = syscall(nr, a, b, c, d, e, f);

	return result == -1 ? -errno : result;
}

/* Python finds zero pages at 1.1 GB/s by comparing slices; this runs at memory bandwidth. */
void tp_zero_pages(const void *pages, size_t count, size_t page_size, uint8_t *out)
{
	const unsigned char *page = pages;

	for (size_t i = 0; i < count; i++, page += page_size) {
		uint64_t first;

		/* A page equals itself moved by one word exactly when all its words are the first one. */
		memcpy(&first, page, sizeof(first));
		out[i] = first == 0 && memcmp(page, page + sizeof(first), page_size - sizeof(first)) == 0;
	}
}

long tp_read_pieces(int fd, const uint64_t *pieces, size_t count, void *buffer)
{
	char *to = buffer;

	for (size_t i = 0; i < count; i++) {
		uint64_t offset = pieces[2 * i], end = offset + pieces[2 * i + 1];

		while (offset < end) {
			long got = tp_syscall(SYS_pread64, fd, (long)to, (long)(end - offset), (long)offset, 0, 0);

			if (got == -EINTR)
				continue;
			if (got <= 0)
				return got ? got : -ESRCH;
			offset += (uint64_t)got;
			to += got;
		}
	}
	return 0;
}

static long make_pages(int32_t userfaultfd, uint64_t to, const char *from, uint64_t size)
{
	struct uffdio_copy copy = {.dst = to, .src = (uintptr_t)from, .len = size, .mode = UFFDIO_COPY_MODE_DONTWAKE};
	long result = tp_syscall(SYS_ioctl, userfaultfd, UFFDIO_COPY, (long)&copy, 0, 0, 0);

	/* -EAGAIN: it stopped at a page that is there. */
	return result == 0 || (result == -EAGAIN && copy.copy > 0) ? copy.copy : result;
}

static long write_pages(int32_t pid, uint64_t to, const char *from, uint64_t size)
{
	struct iovec here = {(char *)from, size}, there = {(void *)(uintptr_t)to, size};

	return tp_syscall(SYS_process_vm_writev, pid, (long)&here, 1, (long)&there, 1, 0);
}

/*
 * One call from Python for each piece would take longer than the copy of a page. UFFDIO_COPY takes two thirds of the time
 * of process_vm_writev(2) for new pages: it copies to them before they are mapped, without zeroing them, and without a
 * fault for each.
 */
long tp_fill(int32_t pid, int32_t userfaultfd, const uint64_t *pieces, size_t count, const void *buffer)
{
	for (size_t i = 0; i < count; i++, pieces += 3) {
		uint64_t to = pieces[0], end = to + pieces[1];
		const char *from = (const char *)buffer + pieces[2];

		while (to < end) {
			long done = userfaultfd < 0 ? -ENOENT : make_pages(userfaultfd, to, from, end - to);

			/* It is not watched, or the first page is there: then this stops at the first that is missing. */
			if (done == -ENOENT || done == -EEXIST)
				done = write_pages(pid, to, from, end - to);
			if (done <= 0)
				return done ? done : -EFAULT;
			to += (uint64_t)done;
			from += done;
		}
	}
	return 0;
}

long tp_find_description(const struct tp_descriptor *wanted, const struct tp_descriptor *known, size_t count,
			 size_t *place)
{
	size_t low = 0, high = count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;
		const struct tp_descriptor *other = known + middle;
		long order = tp_syscall(SYS_kcmp, wanted->pid, other->pid, 0 /* KCMP_FILE */, wanted->fd, other->fd, 0);

		if (order < 0)
			return order;
		if (order == 0) {
			*place = middle;
			return 1;
		}
		if (order == 1)
			high = middle;
		else
			low = middle + 1;
	}
	*place = low;
	return 0;
}

/* A socket has 30 to 60 options that are kept: one call from Python for each took two thirds of the time of a socket. */
void tp_getsockopts(int fd, struct tp_option *options, size_t count, uint8_t *values)
{
	for (size_t i = 0; i < count; values += options[i++].room) {
		uint32_t length = options[i].room;
		long result = tp_syscall(SYS_getsockopt, fd, options[i].level, options[i].name, (long)values,
					 (long)&length, 0);

		options[i].length = result < 0 ? (int32_t)result : (int32_t)length;
	}
}

int tp_register_set(uint32_t number, uint32_t *place)
{
	unsigned int size, offset, flags, d;

	/* Bit 0 of the flags: only the kernel uses it, and it is in no area of a process. */
	if (!__get_cpuid_count(0xd, number, &size, &offset, &flags, &d) || !size || flags & 1)
		return 0;
	place[0] = offset;
	place[1] = size;
	return 1;
}
