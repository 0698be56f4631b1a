/* crc32c.h: the Castagnoli checksum that checkpoints carry. */
#ifndef STGC_RUNTIME_CRC32C_H
#define STGC_RUNTIME_CRC32C_H

#include <stddef.h>
#include <stdint.h>

uint32_t stgc_crc32c(uint32_t crc, const void *bytes,
                     size_t n); /* start with 0; may be continued */
uint32_t stgc_crc32c_table(uint32_t crc, const void *bytes,
                           size_t n); /* the portable way, for tests */

#endif
