/* support/scratch.h - files and folders that a test makes for itself: in $TMPDIR, which tools/run-unit makes for every
 * program and removes with all that is left in it, however the program ended. Without one, in /tmp. */
#ifndef REALM_TEST_SCRATCH_H
#define REALM_TEST_SCRATCH_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SCRATCH_MAX 64 /* bytes of a path */

/* What a path begins as: `char path[SCRATCH_MAX] = "name";`, and becomes. */
static inline char *scratch_template(char path[SCRATCH_MAX]) {
    const char *in = getenv("TMPDIR");
    char name[SCRATCH_MAX];
    strcpy(name, path);
    if (!in || strlen(in) + strlen(name) + sizeof "/realm--XXXXXX" > SCRATCH_MAX) in = "/tmp";
    if (snprintf(path, SCRATCH_MAX, "%s/realm-%s-XXXXXX", in, name) >= SCRATCH_MAX) path[0] = '\0';
    return path;
}

/* NULL when it could not be made. */
__attribute__((unused)) static char *scratch_dir(char path[SCRATCH_MAX]) { return mkdtemp(scratch_template(path)); }
/* An open file, or -1. */
__attribute__((unused)) static int scratch_file(char path[SCRATCH_MAX]) { return mkstemp(scratch_template(path)); }

#endif
