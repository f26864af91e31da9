/* The catalogue against a web server that cuts, lies and redirects, and against a folder with traps in it. After every
 * failure the model's final name must not exist. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/alloc.h"
#include "base/file.h"
#include "catalog/catalog.h"
#include "catalog/http.h"
#include "crypto/crypto.h"
#include "gguf/gguf.h"
#include "support/scratch.h"

static http_server web;
static char dir[SCRATCH_MAX], sha[65];
static void *model;
static size_t model_len;

/* ---- the ground ---- */

static void write_text(const char *name, const char *text) {
    char path[256];
    realm_error err = {0};
    snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_int_equal(realm_file_replace(path, text, strlen(text), 0644, &err), REALM_OK);
}

static bool there(const char *name) {
    char path[512];
    struct stat st;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return lstat(path, &st) == 0;
}

static void make_model(void) {
    realm_gguf_writer *w;
    realm_error err = {0};
    static const float values[64] = {1, 2, 3};
    uint64_t dims[1] = {64};
    assert_int_equal(realm_gguf_writer_open(&w, 3, 32, &err), REALM_OK);
    assert_int_equal(realm_gguf_put_str(w, "general.architecture", "llama", 5), REALM_OK);
    assert_int_equal(realm_gguf_put_u32(w, "llama.context_length", 77), REALM_OK);
    assert_int_equal(realm_gguf_put_tensor(w, "t", REALM_TYPE_F32, 1, dims, values), REALM_OK);
    if (realm_gguf_writer_finish(w, &model, &model_len, &err) != REALM_OK) fail_msg("%s", err.text);
    realm_gguf_writer_close(w);
    uint8_t digest[32];
    assert_int_equal(realm_sha256(model, model_len, digest), REALM_OK);
    realm_hex(digest, 32, sha);
}

static int begin(void **state) {
    (void)state;
    if (!model) make_model();
    snprintf(dir, sizeof dir, "catalog");
    assert_non_null(scratch_dir(dir));
    http_start(&web);
    http_tell(&web, body, model);
    http_tell(&web, len, model_len);
    char index[1024];
    snprintf(index, sizeof index,
             "origins: [\"http://127.0.0.1:%u\"]\nmodels:\n  - {name: tiny, url: \"http://127.0.0.1:%u/m.gguf\", "
             "sha256: %s, "
             "size: %zu}\n  - {name: unsized, url: \"http://127.0.0.1:%u/m.gguf\", sha256: %s}\n",
             web.port, web.port, sha, model_len, web.port, sha);
    write_text("index.yaml", index);
    return 0;
}

static int end(void **state) {
    (void)state;
    http_stop(&web);
    DIR *d = opendir(dir);
    for (struct dirent *e; (e = readdir(d));) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        unlink(path);
    }
    closedir(d);
    return rmdir(dir);
}

static realm_catalog *open_catalog(unsigned tries) {
    realm_catalog *c;
    realm_error err = {0};
    realm_catalog_config config = {.models_dir = dir, .tries = tries, .wait_ms = 1};
    if (realm_catalog_open(&c, &config, &err) != REALM_OK) fail_msg("%s", err.text);
    return c;
}

static void expect_installed(const char *name) {
    char path[256], *data;
    size_t len;
    realm_error err = {0};
    snprintf(path, sizeof path, "%s/%s.gguf", dir, name);
    if (realm_file_read(path, 1 << 20, &data, &len, &err) != REALM_OK) fail_msg("%s", err.text);
    assert_int_equal(len, model_len);
    assert_memory_equal(data, model, len);
    realm_free(data);
    snprintf(path, sizeof path, ".%s.part", name);
    assert_false(there(path));
    snprintf(path, sizeof path, ".%s.pull", name);
    assert_false(there(path));
}

static void expect_pull(realm_catalog *c, const char *name, realm_catalog_pulled *out) {
    realm_error err = {0};
    if (realm_catalog_pull(c, name, NULL, NULL, out, &err) != REALM_OK) fail_msg("%s", err.text);
}

static void expect_failure(realm_catalog *c, const char *name, const realm_catalog_source *from, realm_status code,
                           const char *why) {
    realm_error err = {0};
    char file[160];
    realm_status s = realm_catalog_pull(c, name, from, NULL, NULL, &err);
    if (s != code || !strstr(err.text, why))
        fail_msg("%s: %s, expected %s with \"%s\"", realm_status_name(s), err.text, realm_status_name(code), why);
    assert_int_equal(err.code, code);
    assert_null(strchr(err.text, '\n'));
    snprintf(file, sizeof file, "%s.gguf", name);
    if (!strchr(name, '/')) assert_false(there(file));
}

/* ---- downloads ---- */

static void test_pull_find_remove(void **state) {
    (void)state;
    realm_catalog *c = open_catalog(1);
    realm_catalog_pulled out;
    realm_error err = {0};
    char *path, want[128];
    assert_int_equal(realm_catalog_find(c, "tiny", &path, &err), REALM_E_NOT_FOUND);
    assert_non_null(strstr(err.text, "pull"));
    expect_pull(c, "tiny", &out);
    assert_int_equal(out.fetched_bytes, model_len);
    assert_string_equal(out.sha256, sha);
    assert_false(out.was_there);
    expect_installed("tiny");
    snprintf(want, sizeof want, "%s/tiny.gguf", dir);
    assert_int_equal(realm_catalog_find(c, "tiny", &path, &err), REALM_OK);
    assert_string_equal(path, want);
    realm_free(path);
    assert_int_equal(realm_catalog_find(c, "ti", &path, &err), REALM_OK); /* the only one that begins so */
    realm_free(path);
    unsigned before = http_requests(&web);
    expect_pull(c, "tiny", &out);
    assert_true(out.was_there);
    assert_int_equal(http_requests(&web), before);
    /* changed behind our back: no longer what the stamp says */
    write_text("tiny.gguf", "rubbish");
    expect_pull(c, "tiny", &out);
    assert_false(out.was_there);
    expect_installed("tiny");
    uint64_t freed;
    assert_int_equal(realm_catalog_remove(c, "tiny", &freed, &err), REALM_OK);
    assert_true(freed >= model_len && freed < model_len + 400);
    assert_false(there("tiny.gguf"));
    assert_false(there("tiny.gguf.ok"));
    assert_int_equal(realm_catalog_remove(c, "tiny", &freed, &err), REALM_E_NOT_FOUND);
    assert_false(there(".tiny.pull"));
    realm_catalog_close(c);
}

static void test_cut_and_resumed_within_a_pull(void **state) {
    (void)state;
    static const char *const names[] = {"tiny", "unsized"};
    for (size_t k = 1; k < model_len; k += k < 4 ? 1 : 17) {
        const char *name = names[k % 2];
        realm_catalog *c = open_catalog(2);
        realm_catalog_pulled out;
        http_tell(&web, cut, k);
        expect_pull(c, name, &out);
        assert_int_equal(out.fetched_bytes, model_len); /* no byte twice */
        expect_installed(name);
        assert_int_equal(realm_catalog_remove(c, name, NULL, NULL), REALM_OK);
        realm_catalog_close(c);
    }
}

static void test_cut_and_resumed_by_the_next_pull(void **state) {
    (void)state;
    for (size_t k = 1; k < model_len; k += 7) {
        realm_catalog *c = open_catalog(1);
        realm_catalog_pulled out;
        http_tell(&web, cut, k);
        expect_failure(c, "tiny", NULL, REALM_E_IO, "goes on from there");
        realm_catalog_close(c);
        c = open_catalog(1);
        http_tell(&web, cut, SIZE_MAX);
        expect_pull(c, "tiny", &out);
        assert_int_equal(out.fetched_bytes, model_len - k);
        assert_int_equal(http_last_from(&web), k);
        expect_installed("tiny");
        assert_int_equal(realm_catalog_remove(c, "tiny", NULL, NULL), REALM_OK);
        realm_catalog_close(c);
    }
}

static void test_servers_that_cannot_resume(void **state) {
    (void)state;
    realm_catalog *c = open_catalog(1);
    realm_catalog_pulled out;
    http_tell(&web, cut, 100);
    expect_failure(c, "tiny", NULL, REALM_E_IO, "");
    http_tell(&web, cut, SIZE_MAX);
    http_tell(&web, no_ranges, true);
    expect_pull(c, "tiny", &out);
    assert_int_equal(out.fetched_bytes, model_len);
    expect_installed("tiny");
    assert_int_equal(realm_catalog_remove(c, "tiny", NULL, NULL), REALM_OK);

    http_tell(&web, no_ranges, false);
    http_tell(&web, cut, 100);
    expect_failure(c, "tiny", NULL, REALM_E_IO, "");
    http_tell(&web, cut, SIZE_MAX);
    http_tell(&web, wrong_range, true);
    expect_failure(c, "tiny", NULL, REALM_E_FORMAT, "asked for bytes from 100");
    http_tell(&web, wrong_range, false);
    /* a part that is all of it already */
    char path[128];
    realm_error err = {0};
    snprintf(path, sizeof path, "%s/.unsized.part", dir);
    assert_int_equal(realm_file_replace(path, model, model_len, 0644, &err), REALM_OK);
    write_text(".unsized.pull", sha);
    expect_pull(c, "unsized", &out);
    assert_int_equal(out.fetched_bytes, 0);
    expect_installed("unsized");
    /* and one that is longer than the model on the server */
    assert_int_equal(realm_catalog_remove(c, "unsized", NULL, NULL), REALM_OK);
    char *longer = calloc(1, model_len + 50);
    assert_int_equal(realm_file_replace(path, longer, model_len + 50, 0644, &err), REALM_OK);
    free(longer);
    write_text(".unsized.pull", sha);
    expect_pull(c, "unsized", &out);
    expect_installed("unsized");
    realm_catalog_close(c);
}

static void test_what_comes_is_something_else(void **state) {
    (void)state;
    realm_catalog *c = open_catalog(1);
    char *other = malloc(model_len + 10);
    memcpy(other, model, model_len);
    memset(other + model_len, 0, 10);
    other[model_len - 1] ^= 1;
    http_tell(&web, body, other);
    expect_failure(c, "tiny", NULL, REALM_E_FORMAT, "SHA-256");
    assert_false(there(".tiny.part")); /* nothing to go on from */
    http_tell(&web, len, model_len + 10);
    expect_failure(c, "tiny", NULL, REALM_E_FORMAT, "were expected");
    http_tell(&web, len, model_len - 10);
    expect_failure(c, "tiny", NULL, REALM_E_FORMAT, "were expected");
    expect_failure(c, "unsized", NULL, REALM_E_FORMAT, "SHA-256");
    /* the right hash of a file that is no model */
    uint8_t digest[32];
    char hex[65], url[64];
    assert_int_equal(realm_sha256(other, 20, digest), REALM_OK);
    realm_hex(digest, 32, hex);
    http_tell(&web, len, 20);
    snprintf(url, sizeof url, "http://127.0.0.1:%u/x", web.port);
    expect_failure(c, "bad", &(realm_catalog_source){url, hex}, REALM_E_FORMAT, "not installed");
    assert_false(there(".bad.part"));
    http_tell(&web, body, model);
    http_tell(&web, len, model_len);
    static const struct {
        unsigned status;
        realm_status code;
    } answers[] = {{404, REALM_E_NOT_FOUND}, {403, REALM_E_DENIED}, {500, REALM_E_IO}, {304, REALM_E_IO}};
    for (size_t i = 0; i < REALM_ARRAY_LEN(answers); i++) {
        http_tell(&web, status, answers[i].status);
        expect_failure(c, "tiny", NULL, answers[i].code, "the server answers");
    }
    free(other);
    realm_catalog_close(c);
}

static void test_redirects(void **state) {
    (void)state;
    realm_catalog *c = open_catalog(1);
    realm_catalog_pulled out;
    http_tell(&web, redirect, "/moved");
    expect_pull(c, "tiny", &out);
    expect_installed("tiny");
    assert_true(http_last_path_is(&web, "/moved"));
    assert_int_equal(realm_catalog_remove(c, "tiny", NULL, NULL), REALM_OK);
    static const char *const away[] = {"http://localhost:1/moved", "https://127.0.0.1/moved", "//127.0.0.1:1/moved",
                                       "https://example.invalid/", "file:///etc/passwd",      "http://u:p@127.0.0.1/"};
    for (size_t i = 0; i < REALM_ARRAY_LEN(away); i++) {
        http_tell(&web, redirect, away[i]);
        realm_error err = {0};
        realm_status s = realm_catalog_pull(c, "tiny", NULL, NULL, NULL, &err);
        if ((s != REALM_E_DENIED && s != REALM_E_INVALID) || !strstr(err.text, "redirected to"))
            fail_msg("%s: %s", away[i], err.text);
        assert_false(there("tiny.gguf"));
    }
    http_tell(&web, redirect, "/again");
    expect_failure(c, "tiny", NULL, REALM_E_IO, "redirects");
    assert_true(http_last_path_is(&web, "/again"));
    realm_catalog_close(c);
}

static void test_parts_and_fetched_indexes(void **state) {
    (void)state;
    char index[1024], remote[1024];
    /* the server sends the same bytes for every path, so the "parts" are the model and the model again */
    char *twice = malloc(2 * model_len);
    memcpy(twice, model, model_len);
    memcpy(twice + model_len, model, model_len);
    uint8_t digest[32];
    char hex[65];
    assert_int_equal(realm_sha256(twice, 2 * model_len, digest), REALM_OK);
    free(twice);
    realm_hex(digest, 32, hex);
    snprintf(index, sizeof index,
             "origins: [\"http://127.0.0.1:%u\"]\nindexes: [\"http://127.0.0.1:%u/index.yaml\"]\n"
             "models: [{name: twice, parts: [{url: \"http://127.0.0.1:%u/a\", size: %zu}, {url: "
             "\"http://127.0.0.1:%u/b\", size: %zu}], sha256: %s}]\n",
             web.port, web.port, web.port, model_len, web.port, model_len, hex);
    write_text("index.yaml", index);
    snprintf(remote, sizeof remote, "models:\n  - {name: far, url: sub/far.gguf, sha256: %s}\n", sha);
    http_tell(&web, index, remote);
    realm_catalog *c = open_catalog(1);
    realm_catalog_pulled out;
    http_tell(&web, cut, model_len - 3);
    expect_failure(c, "twice", NULL, REALM_E_IO, "");
    http_tell(&web, cut, SIZE_MAX);
    expect_pull(c, "twice", &out); /* bytes after the tensors are the file's own affair */
    assert_int_equal(out.bytes, 2 * model_len);
    assert_int_equal(out.fetched_bytes, model_len + 3);
    assert_string_equal(out.sha256, hex);
    assert_true(http_last_path_is(&web, "/b"));
    assert_true(there("twice.gguf"));
    expect_pull(c, "far", &out);
    assert_true(http_last_path_is(&web, "/sub/far.gguf"));
    expect_installed("far");
    realm_catalog_close(c);
    static const struct {
        const char *text;
        realm_status code;
        const char *why;
    } bad[] = {{"models: [{name: far, file: /etc/passwd}]", REALM_E_DENIED, "names no files"},
               {"origins: [\"https://x\"]", REALM_E_UNSUPPORTED, "unknown key"},
               {"models: [{name: far, url: \"https://elsewhere.invalid/x\", sha256: 0}]", REALM_E_INVALID, "sha256"},
               {"models: [{name: far, url: \"http://127.0.0.1:1/x\", sha256: "
                "a000000000000000000000000000000000000000000000000000000000000000}]",
                REALM_E_DENIED, "origins"}};
    for (size_t i = 0; i < REALM_ARRAY_LEN(bad); i++) {
        http_tell(&web, index, bad[i].text);
        c = open_catalog(1);
        expect_failure(c, "nowhere", NULL, bad[i].code, bad[i].why);
        realm_catalog_close(c);
    }
}

typedef struct racer {
    pthread_t thread;
    realm_catalog *c;
    realm_catalog_pulled out;
    realm_error err;
    realm_status status;
} racer;

static void *race(void *arg) {
    racer *r = arg;
    r->status = realm_catalog_pull(r->c, "tiny", NULL, NULL, &r->out, &r->err);
    return NULL;
}

static void test_many_pulls_at_once(void **state) {
    (void)state;
    racer racers[8] = {0};
    for (size_t i = 0; i < 8; i++) racers[i].c = open_catalog(1);
    for (size_t i = 0; i < 8; i++) assert_int_equal(pthread_create(&racers[i].thread, NULL, race, &racers[i]), 0);
    uint64_t fetched = 0;
    for (size_t i = 0; i < 8; i++) {
        pthread_join(racers[i].thread, NULL);
        if (racers[i].status != REALM_OK) fail_msg("%s", racers[i].err.text);
        fetched += racers[i].out.fetched_bytes;
        realm_catalog_close(racers[i].c);
    }
    assert_int_equal(fetched, model_len); /* one fetched it, the others found it */
    assert_int_equal(http_requests(&web), 1);
    expect_installed("tiny");
}

static void on_waiting(void *user) { *(bool *)user = true; }

static bool remove_meanwhile(void *user, uint64_t done, uint64_t total) {
    realm_catalog *c = open_catalog(1);
    realm_error err = {0};
    assert_int_equal(done <= total, true);
    *(realm_status *)user = realm_catalog_remove(c, "tiny", NULL, &err);
    realm_catalog_close(c);
    return false;
}

static void test_remove_during_a_pull_and_stopping(void **state) {
    (void)state;
    realm_catalog *c = open_catalog(1);
    realm_status removed = REALM_OK;
    realm_error err = {0};
    realm_catalog_watch watch = {.progress = remove_meanwhile, .waiting = on_waiting, .user = &removed};
    assert_int_equal(realm_catalog_pull(c, "tiny", NULL, &watch, NULL, &err), REALM_E_CANCELLED);
    assert_int_equal(removed, REALM_E_BUSY);
    assert_true(there(".tiny.part"));
    assert_int_equal(realm_catalog_remove(c, "tiny", NULL, &err), REALM_OK); /* what is left of it */
    assert_false(there(".tiny.part"));
    assert_false(there(".tiny.pull"));
    realm_catalog_close(c);
}

/* A limit on file sizes fails as a full disk does: write gives an error in the middle. */
static void test_disk_full(void **state) {
    (void)state;
    for (size_t k = 1; k < model_len; k += 97) {
        pid_t pid = fork();
        if (pid == 0) {
            struct rlimit r = {k, k};
            realm_error err = {0};
            signal(SIGXFSZ, SIG_IGN);
            realm_catalog *c = open_catalog(1);
            setrlimit(RLIMIT_FSIZE, &r);
            realm_status s = realm_catalog_pull(c, "tiny", NULL, NULL, NULL, &err);
            realm_catalog_close(c);
            /* the lock file cannot even be written below 64 bytes */
            _exit(s == REALM_E_IO && err.text[0] && !strchr(err.text, '\n') && !there("tiny.gguf") ? 0 : 1);
        }
        int status;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    realm_catalog *c = open_catalog(1);
    expect_pull(c, "tiny", NULL); /* and with room again it goes on */
    expect_installed("tiny");
    realm_catalog_close(c);
}

/* ---- names, files, links ---- */

static void test_names(void **state) {
    (void)state;
    static const char *const bad[] = {"",     ".",   "..",    "../x",       "a/b",    "/etc/passwd", ".hidden",
                                      "a\nb", "a b", "-x",    "sha256:abc", "a\\b",   "\xc3\xa9",    "a%2fb",
                                      "a:b",  "a@b", "a\x01", "..gguf",     "a/../b", "~root",       "con$"};
    char longest[REALM_CATALOG_NAME_MAX + 2];
    memset(longest, 'a', sizeof longest);
    longest[sizeof longest - 1] = '\0';
    realm_catalog *c = open_catalog(1);
    realm_catalog_source from = {"/dev/null", NULL};
    for (size_t i = 0; i <= REALM_ARRAY_LEN(bad); i++) {
        const char *name = i < REALM_ARRAY_LEN(bad) ? bad[i] : longest;
        realm_error err = {0};
        char *path;
        assert_int_equal(realm_catalog_find(c, name, &path, &err), REALM_E_INVALID);
        assert_null(path);
        assert_int_equal(realm_catalog_pull(c, name, &from, NULL, NULL, &err), REALM_E_INVALID);
        assert_int_equal(realm_catalog_pull(c, name, NULL, NULL, NULL, &err), REALM_E_INVALID);
        assert_int_equal(realm_catalog_remove(c, name, NULL, &err), REALM_E_INVALID);
        assert_null(strchr(err.text, '\n'));
    }
    longest[sizeof longest - 2] = '\0';
    assert_int_equal(realm_catalog_check_name(longest, NULL), REALM_OK);
    assert_int_equal(realm_catalog_check_name("Llama-3.2_1b.Q4", NULL), REALM_OK);
    realm_catalog_close(c);
}

static void test_links_and_devices(void **state) {
    (void)state;
    realm_catalog *c = open_catalog(1);
    realm_error err = {0};
    char path[128], out[128], *found;
    snprintf(path, sizeof path, "%s/link.gguf", dir);
    assert_int_equal(symlink("/etc/passwd", path), 0);
    assert_int_equal(realm_catalog_find(c, "link", &found, &err), REALM_E_DENIED);
    assert_int_equal(realm_catalog_find(c, "lin", &found, &err), REALM_E_DENIED);
    assert_non_null(strstr(err.text, "link out of"));
    unlink(path);
    assert_int_equal(symlink("nowhere", path), 0);
    assert_int_equal(realm_catalog_find(c, "link", &found, &err), REALM_E_NOT_FOUND);
    /* within the folder a link is a second name */
    expect_pull(c, "tiny", NULL);
    unlink(path);
    assert_int_equal(symlink("tiny.gguf", path), 0);
    assert_int_equal(realm_catalog_find(c, "link", &found, &err), REALM_OK);
    realm_free(found);
    assert_int_equal(realm_catalog_remove(c, "link", NULL, &err), REALM_OK); /* the name, not what it names */
    expect_installed("tiny");

    /* where the part or the lock should be, somebody has put something else */
    static const char *const names[] = {".trap.part", ".trap.pull"};
    realm_catalog_source from = {path, NULL};
    snprintf(path, sizeof path, "%s/tiny.gguf", dir);
    snprintf(out, sizeof out, "%s/victim", dir);
    write_text("victim", "precious");
    for (size_t i = 0; i < 2; i++) {
        char trap[128];
        snprintf(trap, sizeof trap, "%s/%s", dir, names[i]);
        unlink(trap); /* the lock that the last round left, because a part was there */
        assert_int_equal(symlink(out, trap), 0);
        expect_failure(c, "trap", &from, REALM_E_INVALID, "is a link");
        unlink(trap);
        assert_int_equal(mkfifo(trap, 0600), 0);
        expect_failure(c, "trap", &from, REALM_E_INVALID, "not a");
        unlink(trap);
    }
    assert_int_equal(link(out, (snprintf(path, sizeof path, "%s/.trap.part", dir), path)), 0);
    snprintf(path, sizeof path, "%s/tiny.gguf", dir);
    expect_failure(c, "trap", &from, REALM_E_INVALID, "not a file of");
    char *text;
    size_t len;
    assert_int_equal(realm_file_read(out, 100, &text, &len, &err), REALM_OK);
    assert_string_equal(text, "precious");
    realm_free(text);

    /* sources that are no files */
    snprintf(path, sizeof path, "%s/fifo", dir);
    assert_int_equal(mkfifo(path, 0600), 0);
    expect_failure(c, "x", &(realm_catalog_source){path, NULL}, REALM_E_INVALID, "not a regular file");
    expect_failure(c, "x", &(realm_catalog_source){"/dev/zero", NULL}, REALM_E_INVALID, "not a regular file");
    expect_failure(c, "x", &(realm_catalog_source){"/tmp", NULL}, REALM_E_INVALID, "not a regular file");
    expect_failure(c, "x", &(realm_catalog_source){"/nowhere/at/all", NULL}, REALM_E_NOT_FOUND, "/nowhere");
    assert_false(there(".x.part"));
    assert_false(there(".x.pull"));
    realm_catalog_close(c);
}

static void test_sources_by_hand(void **state) {
    (void)state;
    realm_catalog *c = open_catalog(1);
    realm_catalog_pulled out;
    realm_error err = {0};
    char url[64], path[128];
    snprintf(url, sizeof url, "http://127.0.0.1:%u/m.gguf?signature=secret", web.port);
    expect_failure(c, "x", &(realm_catalog_source){url, NULL}, REALM_E_INVALID, "SHA-256");
    expect_failure(c, "x", &(realm_catalog_source){url, "12"}, REALM_E_INVALID, "64 hexadecimal");
    expect_failure(c, "x", &(realm_catalog_source){"http://192.0.2.1/x", sha}, REALM_E_DENIED, "use https");
    expect_failure(c, "x", &(realm_catalog_source){"http://127.0.0.1.example.invalid/x", sha}, REALM_E_DENIED, "https");
    expect_failure(c, "x", &(realm_catalog_source){"https://user@host.invalid/x", sha}, REALM_E_INVALID, "user name");
    char endless[REALM_CATALOG_URL_MAX + 2] = "https://host.invalid/";
    memset(endless + strlen(endless), 'x', sizeof endless - 1 - strlen(endless));
    endless[sizeof endless - 1] = '\0';
    const char *const no_urls[] = {"https://", "https://host.invalid/a b", "https://host.invalid\\x", endless};
    for (size_t i = 0; i < REALM_ARRAY_LEN(no_urls); i++)
        expect_failure(c, "x", &(realm_catalog_source){no_urls[i], sha}, REALM_E_INVALID, "not an URL");
    http_tell(&web, status, 404);
    assert_int_equal(realm_catalog_pull(c, "x", &(realm_catalog_source){url, sha}, NULL, NULL, &err),
                     REALM_E_NOT_FOUND);
    assert_null(strstr(err.text, "secret"));
    http_tell(&web, status, 0);
    assert_int_equal(realm_catalog_pull(c, "x", &(realm_catalog_source){url, sha}, NULL, &out, &err), REALM_OK);
    expect_installed("x");
    /* a copy; its hash is checked where one is given */
    snprintf(path, sizeof path, "%s/x.gguf", dir);
    assert_int_equal(realm_catalog_pull(c, "y", &(realm_catalog_source){path, NULL}, NULL, &out, &err), REALM_OK);
    expect_installed("y");
    assert_string_equal(out.sha256, sha);
    char wrong[65];
    memcpy(wrong, sha, 65);
    wrong[0] = wrong[0] == '0' ? '1' : '0';
    expect_failure(c, "z", &(realm_catalog_source){path, wrong}, REALM_E_FORMAT, "SHA-256");
    realm_catalog_close(c);
    write_text("index.yaml", "models:\n  - {name: z, file: x.gguf, size: 100000}\n"); /* and its size */
    c = open_catalog(1);
    expect_failure(c, "z", NULL, REALM_E_FORMAT, "100000 were expected");
    realm_catalog_close(c);
}

typedef struct seen {
    char text[4096];
    size_t len;
} seen;

static void see(void *user, const realm_catalog_entry *e) {
    seen *s = user;
    s->len += (size_t)snprintf(s->text + s->len, sizeof s->text - s->len, "%s:%d:%s:%u:%llu:%.4s%s\n", e->name,
                               (int)e->state, e->architecture, e->context_length,
                               (unsigned long long)(e->have_bytes ? e->have_bytes : e->bytes), e->sha256,
                               e->problem ? ":problem" : "");
}

static void test_list(void **state) {
    (void)state;
    realm_catalog *c = open_catalog(1);
    realm_error err = {0};
    seen s = {0};
    char want[512];
    write_text("broken.gguf", "GGUF?");
    write_text("notes.txt", "");
    write_text("x y.gguf", "");
    expect_pull(c, "tiny", NULL);
    http_tell(&web, cut, 100);
    expect_failure(c, "unsized", NULL, REALM_E_IO, "");
    if (realm_catalog_each(c, see, &s, &err) != REALM_OK) fail_msg("%s", err.text);
    snprintf(want, sizeof want, "broken:%d::0:5::problem\ntiny:%d:llama:77:%zu:%.4s\nunsized:%d::0:100:%.4s\n",
             REALM_CATALOG_BROKEN, REALM_CATALOG_INSTALLED, model_len, sha, REALM_CATALOG_PARTIAL, sha);
    assert_string_equal(s.text, want);
    realm_catalog_close(c);
}

static void test_bad_indexes(void **state) {
    (void)state;
#define SHA "sha256: a000000000000000000000000000000000000000000000000000000000000000"
    static const struct {
        const char *text, *why;
    } bad[] = {
        {"models:\n  - name: a\n    file: x\n    colour: red\n", "line 4: models[0].colour: unknown key"},
        {"models:\n  - {name: ../a, file: x}\n", "line 2: models[0].name"},
        {"models:\n  - {name: a}\n", "one of url, parts and file"},
        {"models:\n  - {name: a, file: x, url: y}\n", "one of url, parts and file"},
        {"models:\n  - {name: a, file: x}\n  - {name: a, file: y}\n", "line 3: models[1]: a stands above"},
        {"models:\n  - {name: a, url: \"https://h.invalid/x\", " SHA "}\n", "not among the origins"},
        {"origins: [\"https://h.invalid\"]\nmodels:\n  - {name: a, url: \"https://h.invalid:444/x\", " SHA "}\n",
         "https://h.invalid:444 is not among"},
        {"origins: [\"https://h.invalid\"]\nmodels:\n  - {name: a, url: \"https://h.invalid/x\"}\n",
         "sha256: is required"},
        {"origins: [\"https://h.invalid\"]\nmodels:\n  - {name: a, url: x.gguf, " SHA "}\n", "not an URL"},
        {"origins: [\"ftp://h.invalid\"]\n", "neither https nor http"},
        {"origins: [\"http://h.invalid\"]\n", "use https"},
        {"origins: [\"https://\"]\n", "not an URL"},
        {"origins: [7]\n", "must be a string"},
        {"origins: [\"https://h.invalid\"]\nmodels:\n  - {name: a, parts: [{url: \"https://h.invalid/x\"}], " SHA "}\n",
         "size: is required"},
        {"models:\n  - {name: a, parts: [], " SHA "}\n", "1 to 64 parts"},
        {"origins: [\"https://h.invalid\"]\nmodels:\n  - {name: a, parts: [{url: \"https://h.invalid/x\", size: "
         "2199023255552},"
         " {url: \"https://h.invalid/y\", size: 1}], " SHA "}\n",
         "more than 2199023255552 bytes together"},
        {"origins: [\"https://h.invalid\"]\nmodels:\n  - {name: a, size: 4, parts: [{url: \"https://h.invalid/x\", "
         "size: 2},"
         " {url: \"https://h.invalid/y\", size: 1}], " SHA "}\n",
         "3 bytes together, size says 4"},
        {"models:\n  - {name: a, file: \"\"}\n", "file: must not be empty"},
        {"models:\n  - {name: a, file: x, size: 0}\n", "size"},
        {"models:\n  - {name: a, file: x, sha256: 12}\n", "sha256"},
        {"indexes: [\"https://h.invalid/x\"]\n", "not among the origins"},
        {"a: [", "line"},
    };
    for (size_t i = 0; i < REALM_ARRAY_LEN(bad); i++) {
        realm_catalog *c;
        realm_error err = {0};
        write_text("index.yaml", bad[i].text);
        realm_status s = realm_catalog_open(&c, &(realm_catalog_config){.models_dir = dir}, &err);
        if (s == REALM_OK || !strstr(err.text, bad[i].why) || !strstr(err.text, "index.yaml: line"))
            fail_msg("%s: %s, expected \"%s\"", bad[i].text, err.text, bad[i].why);
        assert_null(c);
    }
}

/* As many entries of one list as may be, then one more. */
static void expect_at_most(const char *head, const char *before, const char *behind, size_t most, const char *why) {
    const size_t room = strlen(head) + (most + 1) * (strlen(before) + strlen(behind) + 8) + 1;
    char *text = realm_malloc(room);
    assert_non_null(text);
    for (size_t n = most; n <= most + 1; n++) {
        size_t at = (size_t)snprintf(text, room, "%s", head);
        for (size_t i = 0; i < n; i++) at += (size_t)snprintf(text + at, room - at, "%s%zu%s", before, i, behind);
        realm_catalog *c = NULL;
        realm_error err = {0};
        write_text("index.yaml", text);
        realm_status s = realm_catalog_open(&c, &(realm_catalog_config){.models_dir = dir}, &err);
        if (s != (n == most ? REALM_OK : REALM_E_LIMIT) || (n > most && !strstr(err.text, why)))
            fail_msg("%zu of %s: %s, expected \"%s\"", n, before, err.text, why);
        realm_catalog_close(c);
    }
    realm_free(text);
}

static void test_limits_of_an_index(void **state) {
    (void)state;
    expect_at_most("models:\n", "  - {name: a", ", file: x}\n", REALM_CATALOG_MODELS_MAX, "more than 1024 models");
    expect_at_most("origins:\n", "  - \"https://h", ".invalid\"\n", REALM_CATALOG_ORIGINS_MAX, "more than 32 origins");
    expect_at_most("origins: [\"https://h.invalid\"]\nindexes:\n", "  - \"https://h.invalid/", "\"\n",
                   REALM_CATALOG_ORIGINS_MAX, "more than 32 indexes");
}

/* What lies in the download cache alone is not this command's to remove. */
static void test_caches_are_left_alone(void **state) {
    (void)state;
    char cache[128], path[160];
    snprintf(cache, sizeof cache, "%s/cache", dir);
    snprintf(path, sizeof path, "%s/kept.gguf", cache);
    assert_int_equal(mkdir(cache, 0700), 0);
    realm_catalog *c;
    realm_error err = {0};
    assert_int_equal(realm_file_replace(path, model, model_len, 0644, &err), REALM_OK);
    assert_int_equal(realm_catalog_open(&c, &(realm_catalog_config){.models_dir = dir, .cache_dir = cache}, &err),
                     REALM_OK);
    assert_int_equal(realm_catalog_remove(c, "kept", NULL, &err), REALM_E_DENIED);
    assert_non_null(strstr(err.text, path));
    assert_int_equal(access(path, F_OK), 0);
    assert_int_equal(realm_catalog_remove(c, "other", NULL, &err), REALM_E_NOT_FOUND);
    realm_catalog_close(c);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(cache), 0);
}

static void test_allocation_failures(void **state) {
    (void)state;
    realm_catalog_config config = {.models_dir = dir, .tries = 1, .wait_ms = 1};
    for (int64_t n = 0;; n++) {
        realm_catalog *c = NULL;
        realm_error err = {0};
        realm_alloc_inject_failure(n, false);
        realm_status s = realm_catalog_open(&c, &config, &err);
        if (s == REALM_OK) s = realm_catalog_pull(c, "tiny", NULL, NULL, NULL, &err);
        bool all = realm_alloc_count() <= n;
        realm_alloc_inject_failure(-1, false);
        realm_catalog_close(c);
        if (all) {
            assert_int_equal(s, REALM_OK);
            break;
        }
        if (s == REALM_OK) { /* a stamp or something else that may be missing */
            c = open_catalog(1);
            assert_int_equal(realm_catalog_remove(c, "tiny", NULL, NULL), REALM_OK);
            realm_catalog_close(c);
        } else if (s != REALM_E_NOMEM) {
            fail_msg("allocation %lld: %s: %s", (long long)n, realm_status_name(s), err.text);
        }
    }
    expect_installed("tiny");
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, begin, end)
        T(test_pull_find_remove),
        T(test_cut_and_resumed_within_a_pull),
        T(test_cut_and_resumed_by_the_next_pull),
        T(test_servers_that_cannot_resume),
        T(test_what_comes_is_something_else),
        T(test_redirects),
        T(test_parts_and_fetched_indexes),
        T(test_many_pulls_at_once),
        T(test_remove_during_a_pull_and_stopping),
        T(test_disk_full),
        T(test_names),
        T(test_links_and_devices),
        T(test_sources_by_hand),
        T(test_list),
        T(test_bad_indexes),
        T(test_limits_of_an_index),
        T(test_caches_are_left_alone),
        T(test_allocation_failures),
    };
    signal(SIGPIPE, SIG_IGN);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    realm_free(model);
    return failed;
}
