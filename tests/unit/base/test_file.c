/* Files that are being written: whose they are, and what is left of them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/file.h"
#include "base/thread.h"
#include "support/scratch.h"

static char dir[SCRATCH_MAX];

static int make_dir(void **state) {
    (void)state;
    strcpy(dir, "file");
    return scratch_dir(dir) ? 0 : 1;
}

static int remove_dir(void **state) {
    (void)state;
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));) (void)unlinkat(dirfd(d), e->d_name, 0);
    if (d) closedir(d);
    return rmdir(dir);
}

static void at(char path[SCRATCH_MAX + 32], const char *name) { snprintf(path, SCRATCH_MAX + 32, "%s/%s", dir, name); }

/* One that is being written is its process's until that has ended, by kill -9 too. */
static void held_by_a_living_process(void **state) {
    (void)state;
    char path[SCRATCH_MAX + 32];
    struct stat st;
    int fd, ready[2];
    at(path, "own-XXXXXX");
    assert_int_equal(realm_file_make(path, &fd, NULL), REALM_OK);
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(realm_file_claim(path), -1);
    close(fd);
    fd = realm_file_claim(path);
    assert_true(fd >= 0);
    assert_int_equal(realm_file_claim(path), -1); /* by one at a time */
    close(fd);

    at(path, "other-XXXXXX");
    assert_int_equal(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
        if (realm_file_make(path, &fd, NULL) != REALM_OK || write(ready[1], path, sizeof path) != sizeof path) _exit(1);
        for (;;) pause();
    }
    close(ready[1]);
    assert_int_equal(read(ready[0], path, sizeof path), sizeof path);
    assert_int_equal(access(path, F_OK), 0);
    assert_int_equal(realm_file_claim(path), -1);
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, NULL, 0), child);
    fd = realm_file_claim(path);
    assert_true(fd >= 0);
    close(fd);
    close(ready[0]);
}

static void only_files_are_claimed(void **state) {
    (void)state;
    char path[SCRATCH_MAX + 32], file[SCRATCH_MAX + 32];
    int fd;
    at(path, "nothing");
    assert_int_equal(realm_file_claim(path), -1);
    assert_int_equal(realm_file_claim(dir), -1);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(realm_file_claim(path), -1);
    at(file, "file");
    at(path, "link");
    assert_int_equal(realm_file_replace(file, "x", 1, 0600, NULL), REALM_OK);
    assert_int_equal(symlink(file, path), 0);
    assert_int_equal(realm_file_claim(path), -1);
    assert_true((fd = realm_file_claim(file)) >= 0);
    close(fd);
    at(path, "no/folder-XXXXXX");
    realm_error err = {0};
    assert_int_equal(realm_file_make(path, &fd, &err), REALM_E_NOT_FOUND);
    assert_non_null(strstr(err.text, "no/folder-"));
}

static size_t count(void) {
    size_t n = 0;
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

/* Whatever of the new files has no owner goes. */
static void *sweep(void *arg) {
    atomic_bool *stop = arg;
    while (!atomic_load(stop)) {
        DIR *d = opendir(dir);
        for (struct dirent *e; d && (e = readdir(d));) {
            char path[SCRATCH_MAX + 32 + 256];
            if (!strncmp(e->d_name, "whole", 5) && !strchr(e->d_name, '.')) continue;
            snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
            int fd = realm_file_claim(path);
            if (fd >= 0) (void)unlink(path);
            if (fd >= 0) close(fd);
        }
        if (d) closedir(d);
    }
    return NULL;
}

/* Beside one who removes all that nobody holds, files are made, written and moved into place, each of them. */
static void sweeping_takes_nothing_away(void **state) {
    (void)state;
    enum { N = 300 };
    char path[SCRATCH_MAX + 32], name[24];
    atomic_bool stop = false;
    pthread_t thread;
    realm_error err = {0};
    assert_int_equal(realm_thread_start(&thread, "sweep", sweep, &stop, &err), REALM_OK);
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof name, "whole%d", i);
        at(path, name);
        if (realm_file_replace(path, "content", 7, 0600, &err)) fail_msg("%s", err.text);
    }
    atomic_store(&stop, true);
    pthread_join(thread, NULL);
    assert_int_equal(count(), N);
    char *data;
    size_t len;
    assert_int_equal(realm_file_read(path, 100, &data, &len, &err), REALM_OK);
    assert_string_equal(data, "content");
    realm_free(data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(held_by_a_living_process, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(only_files_are_claimed, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(sweeping_takes_nothing_away, make_dir, remove_dir),
    };
    return cmocka_run_group_tests_name("file", tests, NULL, NULL);
}
