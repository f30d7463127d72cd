/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The C core: what Python cannot do to another process, and nothing else. The part of this file between the
 * cffi marks is read by build.py as the declarations of torpor._native; keep it plain C without macros.
 */
#ifndef TORPOR_H
#define TORPOR_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */

/* One raw system call; the result, or the negated errno (errno itself is not touched). */
long tp_syscall(long nr, long a, long b, long c, long d, long e, long f);

/* The batch interpreter: position-independent code, see batch.c. */
const void *tp_batch_code(void);
size_t tp_batch_size(void);

/* Mark in out[i] whether page i of count pages at pages holds only zeros. */
void tp_zero_pages(const void *pages, size_t count, size_t page_size, uint8_t *out);

/* Bytes of a standard-format xsave area that holds these components (a mask as in XCR0). */
uint32_t tp_xsave_size(uint64_t features);

/* cffi: end */

#endif
