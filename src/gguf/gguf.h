/* gguf/gguf.h - reader and writer of GGUF v2 and v3 files (the ggml project's model format).
 *
 * The reader parses a read-only mapping: keys, strings and arrays are borrowed from it and live as long as the
 * realm_gguf. Every count, length, offset, dimension and alignment is checked before use, so a file that opens can be
 * walked without further checks: names are unique, not empty and free of NUL, tensors lie inside the file and do not
 * overlap. A file that does not open gives one line that says what was wrong and at which byte.
 * Memory used for the index is bounded by the file's own size. Big-endian files are refused. Reading functions: any
 * thread once opened.
 */
#ifndef REALM_GGUF_GGUF_H
#define REALM_GGUF_GGUF_H

#include "base/base.h"
#include "base/buf.h"
#include "quant/quant.h"

#define REALM_GGUF_MAX_DIMS 4
#define REALM_GGUF_MAX_TENSORS (1u << 20)
#define REALM_GGUF_MAX_KEYS (1u << 20)
#define REALM_GGUF_MAX_NAME 1024u         /* bytes of a key or tensor name; at least 1, none of them NUL */
#define REALM_GGUF_MAX_STRING 0x7fffffffu /* bytes of a string value: lengths fit an int */
#define REALM_GGUF_MAX_NESTING 4u         /* arrays in arrays */
/* general.alignment is a power of two between these: the data of every type is aligned for its elements, and padding
 * cannot dwarf the data. */
#define REALM_GGUF_MIN_ALIGNMENT 8u
#define REALM_GGUF_MAX_ALIGNMENT 65536u

typedef enum realm_gguf_value_type {
    REALM_GGUF_U8 = 0,
    REALM_GGUF_I8 = 1,
    REALM_GGUF_U16 = 2,
    REALM_GGUF_I16 = 3,
    REALM_GGUF_U32 = 4,
    REALM_GGUF_I32 = 5,
    REALM_GGUF_F32 = 6,
    REALM_GGUF_BOOL = 7,
    REALM_GGUF_STRING = 8,
    REALM_GGUF_ARRAY = 9,
    REALM_GGUF_U64 = 10,
    REALM_GGUF_I64 = 11,
    REALM_GGUF_F64 = 12
} realm_gguf_value_type;

/* Bytes in the file: not NUL-terminated, may hold anything. */
typedef struct realm_gguf_str {
    const char *data;
    size_t len;
} realm_gguf_str;

typedef struct realm_gguf_tensor {
    realm_gguf_str name;
    const realm_type_info *type;
    uint32_t n_dims;                    /* 1..4 */
    uint64_t dims[REALM_GGUF_MAX_DIMS]; /* dims[0] is the fastest (columns of a weight); unused ones are 1; none is 0 */
    uint64_t n_bytes;
    const void *data; /* in the mapping, at a multiple of the file's alignment from its start (so to 8 at least) */
} realm_gguf_tensor;

typedef struct realm_gguf realm_gguf;
typedef struct realm_gguf_value realm_gguf_value; /* borrowed */

/* Maps and checks `path`. REALM_E_FORMAT for bytes that are no well-formed GGUF, REALM_E_UNSUPPORTED for a version,
 * byte order or tensor type that is not known, file errors as realm_mapping_open; the text starts with the path. *out
 * is NULL on failure. */
REALM_WARN_UNUSED realm_status realm_gguf_open(realm_gguf **out, const char *path, realm_error *err);
/* The same over bytes in memory, aligned to REALM_GGUF_MIN_ALIGNMENT, that the caller keeps alive until close. */
REALM_WARN_UNUSED realm_status realm_gguf_open_memory(realm_gguf **out, const void *data, size_t size,
                                                      realm_error *err);
void realm_gguf_close(realm_gguf *g); /* NULL-safe */

uint32_t realm_gguf_version(const realm_gguf *g);
uint64_t realm_gguf_alignment(const realm_gguf *g);
uint64_t realm_gguf_file_size(const realm_gguf *g);

/* Tensors in file order, and by name (hashed; NULL when absent). */
size_t realm_gguf_tensor_count(const realm_gguf *g);
const realm_gguf_tensor *realm_gguf_tensor_at(const realm_gguf *g, size_t index);
const realm_gguf_tensor *realm_gguf_tensor_find(const realm_gguf *g, const char *name);

/* Gives back the memory of the tensor's pages when the file is a mapping; `data` stays valid and is read again from the
 * file when touched. For weights that have been copied elsewhere. */
void realm_gguf_drop_pages(const realm_gguf *g, const realm_gguf_tensor *t);

/* Metadata in file order, and by key (NULL when absent). */
size_t realm_gguf_key_count(const realm_gguf *g);
realm_gguf_str realm_gguf_key_at(const realm_gguf *g, size_t index);
const realm_gguf_value *realm_gguf_value_at(const realm_gguf *g, size_t index);
const realm_gguf_value *realm_gguf_find(const realm_gguf *g, const char *key);

realm_gguf_value_type realm_gguf_type(const realm_gguf_value *v);
/* For arrays: element type and count; nested arrays are checked on open but not readable. */
realm_gguf_value_type realm_gguf_array_type(const realm_gguf_value *v);
uint64_t realm_gguf_array_len(const realm_gguf_value *v);

/* Scalars by key, converted between integer types where the value fits. `required`: an absent key is
 * REALM_E_NOT_FOUND naming it; otherwise *out keeps its value and REALM_OK is returned. A key of another type or a
 * value that does not fit is REALM_E_FORMAT naming key and type. Floats accept f32 and f64 and must be finite. */
REALM_WARN_UNUSED realm_status realm_gguf_get_u32(const realm_gguf *g, const char *key, bool required, uint32_t *out,
                                                  realm_error *err);
REALM_WARN_UNUSED realm_status realm_gguf_get_f32(const realm_gguf *g, const char *key, bool required, float *out,
                                                  realm_error *err);
REALM_WARN_UNUSED realm_status realm_gguf_get_bool(const realm_gguf *g, const char *key, bool required, bool *out,
                                                   realm_error *err);
REALM_WARN_UNUSED realm_status realm_gguf_get_str(const realm_gguf *g, const char *key, bool required,
                                                  realm_gguf_str *out, realm_error *err);

/* Iterates an array of strings; start with {0}. False at the end. The array must be of strings. */
typedef struct realm_gguf_iter {
    const realm_gguf_value *v;
    const unsigned char *at;
    uint64_t index;
} realm_gguf_iter;
void realm_gguf_iter_init(realm_gguf_iter *it, const realm_gguf_value *string_array);
bool realm_gguf_iter_next(realm_gguf_iter *it, realm_gguf_str *out);
/* Element i of a numeric or bool array; the caller has checked i and the element type class. Integers of any width
 * through _i64 (u64 above INT64_MAX saturates), floats and integers through _f64. */
int64_t realm_gguf_array_i64(const realm_gguf_value *v, uint64_t i);
double realm_gguf_array_f64(const realm_gguf_value *v, uint64_t i);

/* Writer: metadata and tensors are added in order, then everything is written at once. Tensor data is borrowed until
 * realm_gguf_writer_finish or _save, everything else is copied. One thread. */
typedef struct realm_gguf_writer realm_gguf_writer;
/* Version 2 or 3. An alignment other than 32 is written as general.alignment; never put that key yourself. */
REALM_WARN_UNUSED realm_status realm_gguf_writer_open(realm_gguf_writer **out, uint32_t version, uint32_t alignment,
                                                      realm_error *err);
void realm_gguf_writer_close(realm_gguf_writer *w); /* NULL-safe */

/* REALM_E_INVALID for a name, size, type or shape that a file cannot hold, REALM_E_NOMEM; the writer is then as before
 * the call and stays usable. */
REALM_WARN_UNUSED realm_status realm_gguf_put_u32(realm_gguf_writer *w, const char *key, uint32_t v);
REALM_WARN_UNUSED realm_status realm_gguf_put_f32(realm_gguf_writer *w, const char *key, float v);
REALM_WARN_UNUSED realm_status realm_gguf_put_bool(realm_gguf_writer *w, const char *key, bool v);
REALM_WARN_UNUSED realm_status realm_gguf_put_str(realm_gguf_writer *w, const char *key, const char *s, size_t len);
REALM_WARN_UNUSED realm_status realm_gguf_put_strs(realm_gguf_writer *w, const char *key, const realm_gguf_str *s,
                                                   size_t n);
/* A numeric or bool array of n elements from native memory. */
REALM_WARN_UNUSED realm_status realm_gguf_put_array(realm_gguf_writer *w, const char *key, realm_gguf_value_type type,
                                                    const void *data, size_t n);
/* dims[0] is the fastest; `data` holds the rows in order, in the type's blocks. */
REALM_WARN_UNUSED realm_status realm_gguf_put_tensor(realm_gguf_writer *w, const char *name, realm_type type,
                                                     uint32_t n_dims, const uint64_t *dims, const void *data);

/* The whole file as bytes, freed with realm_free, or written to `path` in one step. The bytes have been opened with the
 * reader: what it would refuse (a name put twice, a bool of 2) is its error here. The writer stays usable. */
REALM_WARN_UNUSED realm_status realm_gguf_writer_finish(realm_gguf_writer *w, void **data, size_t *len,
                                                        realm_error *err);
REALM_WARN_UNUSED realm_status realm_gguf_writer_save(realm_gguf_writer *w, const char *path, realm_error *err);

/* Longest general.architecture that is taken: it becomes part of keys and messages. */
#define REALM_GGUF_MAX_ARCHITECTURE 64u
/* Copies general.architecture with a NUL; false when it is absent, no string, empty, too long or holds anything but
 * letters, digits, '-', '_' and '.'. */
bool realm_gguf_architecture(const realm_gguf *g, char out[REALM_GGUF_MAX_ARCHITECTURE + 1]);
/* Checks what holds for the metadata of every architecture: an architecture is named, counts are positive integers,
 * numbers are finite, tokenizer arrays agree in length, special token ids lie inside the vocabulary. REALM_E_FORMAT or
 * REALM_E_NOT_FOUND naming the key. */
REALM_WARN_UNUSED realm_status realm_gguf_check_metadata(const realm_gguf *g, realm_error *err);

/* Appends to `out` what the file is, read from the header alone: lines for people, or one JSON object. Bytes of the
 * file are escaped. The metadata itself is taken as it comes: a key of a wrong type or absent is left out, not an
 * error. least_weight_bytes is what who computes with the file needs for weights at least, the rest streaming; 0: not
 * known, left out. REALM_E_LIMIT or REALM_E_NOMEM when `out` cannot grow. */
REALM_WARN_UNUSED realm_status realm_gguf_describe(const realm_gguf *g, bool json, uint64_t least_weight_bytes,
                                                   realm_buf *out, realm_error *err);

#endif
