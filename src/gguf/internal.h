/* gguf/internal.h - what the files of this folder share: the parsed form, and the name index. */
#ifndef REALM_GGUF_INTERNAL_H
#define REALM_GGUF_INTERNAL_H

#include "base/file.h"
#include "gguf/gguf.h"

/* A checked value in the mapping. */
struct realm_gguf_value {
    realm_gguf_value_type type;
    realm_gguf_value_type element; /* of an array */
    uint64_t n;                    /* elements of an array, bytes of a string, else 1 */
    const unsigned char *data;     /* the scalar, the string's bytes, or the first element; no alignment */
};

typedef struct realm_gguf_entry {
    realm_gguf_str key;
    realm_gguf_value value;
} realm_gguf_entry;

/* Names to positions; open addressing over at most half of the slots. The hash is keyed with random bytes, so a file
 * cannot choose names that collide. The names are the caller's and outlive the index. */
typedef struct realm_gguf_index {
    uint64_t key[2];
    uint32_t *slots; /* position + 1; 0 is free */
    size_t mask;
    const char *names; /* realm_gguf_str at names + position * stride */
    size_t stride;
} realm_gguf_index;

/* Room for n positions whose names stand `stride` bytes apart from `names` on. */
REALM_WARN_UNUSED realm_status realm_gguf_index_init(realm_gguf_index *x, size_t n, const realm_gguf_str *names,
                                                     size_t stride, realm_error *err);
void realm_gguf_index_release(realm_gguf_index *x);
/* False when an equal name is in already. At most n calls. */
bool realm_gguf_index_add(realm_gguf_index *x, size_t position);
/* SIZE_MAX when absent. */
size_t realm_gguf_index_find(const realm_gguf_index *x, const char *name, size_t len);

struct realm_gguf {
    realm_mapping mapping; /* empty when the bytes are the caller's */
    const unsigned char *data;
    size_t size;
    uint32_t version;
    uint64_t alignment;
    size_t data_start; /* offset of the tensor data */
    realm_gguf_entry *entries;
    size_t n_entries;
    realm_gguf_tensor *tensors;
    size_t n_tensors;
    realm_gguf_index key_index, tensor_index;
};

/* Bytes of one element in the file; 0 for strings, arrays and unknown numbers. */
size_t realm_gguf_scalar_bytes(uint32_t type);
/* "u32"; "?" for an unknown number. */
const char *realm_gguf_type_name(uint32_t type);

#endif
