/* base/file.h - files as Realm needs them: mapped, read whole, replaced atomically. Any thread.
 *
 * What is being written has a name of its own until it is whole, and is held (flock) by who writes it: that ends with
 * the process however it ends, so that what one that was killed has left can be told from what one is at.
 *
 *      realm_file_make --> held --rename--> whole, held --close--> whole
 *                           |
 *                           +-- killed --> nobody's --realm_file_claim, unlink--> gone
 */
#ifndef REALM_BASE_FILE_H
#define REALM_BASE_FILE_H

#include "base/base.h"

typedef struct realm_mapping {
    const unsigned char *data; /* NULL when empty */
    size_t size;
} realm_mapping;

/* Maps a regular file read-only. Directories, FIFOs, devices and sockets are refused (REALM_E_INVALID) without
 * blocking on them; REALM_E_NOT_FOUND, REALM_E_DENIED and REALM_E_IO otherwise. The file must not be truncated while
 * mapped. */
REALM_WARN_UNUSED realm_status realm_mapping_open(realm_mapping *m, const char *path, realm_error *err);
void realm_mapping_close(realm_mapping *m);
/* Gives back the memory of the whole pages inside [data, data + len) of the mapping; reading them again brings them
 * back from the file. Does nothing for bytes outside the mapping. */
void realm_mapping_drop(const realm_mapping *m, const void *data, size_t len);

/* Reads a whole regular file of at most max_bytes (REALM_E_LIMIT past it). *data is NUL-terminated, freed with
 * realm_free. */
REALM_WARN_UNUSED realm_status realm_file_read(const char *path, size_t max_bytes, char **data, size_t *len,
                                               realm_error *err);
/* Writes a temporary file beside `path`, syncs it and renames it over `path`: readers see the old or the new content,
 * never a part. `mode` are the permission bits. */
REALM_WARN_UNUSED realm_status realm_file_replace(const char *path, const void *data, size_t len, unsigned mode,
                                                  realm_error *err);
/* Makes a file with mode 0600, `path` ending in XXXXXX, which becomes what no file there was called; it is held while
 * *fd is open. On failure there is none. */
REALM_WARN_UNUSED realm_status realm_file_make(char *path, int *fd, realm_error *err);
/* Takes hold of a regular file that nobody holds, to remove it before closing the descriptor; -1: it is held, or is not
 * there any more, or cannot be. Does not wait. */
int realm_file_claim(const char *path);
/* mkdir -p with mode 0700 for folders that it makes. */
REALM_WARN_UNUSED realm_status realm_dir_make(const char *path, realm_error *err);

/* Joins with one '/', result freed with realm_free; NULL when memory is out. */
char *realm_path_join(const char *dir, const char *name);

#endif
