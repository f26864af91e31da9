#include "cli/args.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/file.h"
#include "base/str.h"

int realm_args_usage(realm_args *args, const char *what, const char *arg) {
    char shown[256];
    fprintf(stderr, "realm: %s: %s%s\n%s", args->command, what, realm_escape(shown, sizeof shown, arg, strlen(arg)),
            args->usage);
    return args->status = REALM_EXIT_USAGE;
}

static int end(realm_args *args, int status) {
    args->status = status;
    return -1;
}

int realm_args_next(realm_args *args, const char **value) {
    *value = NULL;
    if (args->at + 1 >= args->argc) return 0;
    const char *arg = args->argv[++args->at];
    if (args->only_words || arg[0] != '-' || arg[1] == '\0') {
        if (args->n_words == args->words_max) return end(args, realm_args_usage(args, "one argument too many: ", arg));
        args->words[args->n_words++] = arg;
        return realm_args_next(args, value);
    }
    if (strcmp(arg, "--") == 0) {
        args->only_words = true;
        return realm_args_next(args, value);
    }
    if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
        fputs(args->usage, stdout);
        fputs(args->help, stdout);
        if (args->prints_data) fputs("  --output json      print JSON instead of text\n", stdout);
        fputs("  --help             this text\n", stdout);
        return end(args, realm_printed(args->command));
    }
    size_t len = strcspn(arg, "=");
    static const realm_option output = {"--output", -1, true};
    const realm_option *o = NULL;
    for (const realm_option *p = args->options; p && p->name && !o; p++)
        if (strlen(p->name) == len && memcmp(p->name, arg, len) == 0) o = p;
    if (!o && args->prints_data && len == strlen(output.name) && memcmp(arg, output.name, len) == 0) o = &output;
    if (!o) return end(args, realm_args_usage(args, "unknown option ", arg));
    if (o->takes_value) {
        if (arg[len] == '=')
            *value = arg + len + 1;
        else if (args->at + 1 < args->argc)
            *value = args->argv[++args->at];
        else
            return end(args, realm_args_usage(args, "a value is missing after ", arg));
    } else if (arg[len] == '=') {
        return end(args, realm_args_usage(args, "no value is taken by ", arg));
    }
    if (o != &output) return o->id;
    args->json = strcmp(*value, "json") == 0;
    if (!args->json && strcmp(*value, "text") != 0)
        return end(args, realm_args_usage(args, "--output takes text or json, not ", *value));
    return realm_args_next(args, value);
}

int realm_args_action(realm_args *args, const realm_action *actions, size_t n) {
    if (args->n_words == 0) return end(args, realm_args_usage(args, "what to do is missing", ""));
    for (size_t i = 0; i < n; i++) {
        if (strcmp(args->words[0], actions[i].name) != 0) continue;
        if (args->n_words > 1 && !actions[i].wants)
            return end(args, realm_args_usage(args, "one argument too many: ", args->words[1]));
        if (args->n_words > 1 || !actions[i].wants) return (int)i;
        char what[64];
        snprintf(what, sizeof what, "%s is missing", actions[i].wants);
        return end(args, realm_args_usage(args, what, ""));
    }
    return end(args, realm_args_usage(args, "no such action: ", args->words[0]));
}

bool realm_args_u64(realm_args *args, const char *option, const char *text, uint64_t least, uint64_t most,
                    uint64_t *out) {
    char *rest, what[160];
    errno = 0;
    unsigned long long v = strtoull(text, &rest, 10);
    if (text[0] >= '0' && text[0] <= '9' && *rest == '\0' && errno == 0 && v >= least && v <= most) {
        *out = v;
        return true;
    }
    snprintf(what, sizeof what, "%s takes a whole number from %llu to %llu, not ", option, (unsigned long long)least,
             (unsigned long long)most);
    (void)realm_args_usage(args, what, text);
    return false;
}

bool realm_size_parse(const char *text, uint64_t *out) {
    static const char units[] = "KMGT";
    char *rest;
    double v = strtod(text, &rest);
    const char *unit = *rest ? strchr(units, toupper((unsigned char)*rest)) : NULL;
    if (unit) {
        for (const char *u = units; u <= unit; u++) v *= 1024;
        rest++;
        if (rest[0] == 'i' && rest[1] == 'B') rest += 2;
    }
    if (!isdigit((unsigned char)text[0]) || *rest || !isfinite(v) || v < 1 || v > 0x1p60) return false;
    *out = (uint64_t)v;
    return true;
}

bool realm_args_size(realm_args *args, const char *option, const char *text, uint64_t *out) {
    if (realm_size_parse(text, out)) return true;
    char what[160];
    snprintf(what, sizeof what, "%s takes a size like 200M or 1.5G, not ", option);
    (void)realm_args_usage(args, what, text);
    return false;
}

bool realm_time_parse(const char *text, int64_t *out_s) {
    static const char *const formats[] = {"%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"};
    for (size_t i = 0; i < REALM_ARRAY_LEN(formats); i++) {
        struct tm tm = {0}, back;
        const char *end = strptime(text, formats[i], &tm);
        if (!end || *end != '\0') continue;
        const int day = tm.tm_mday, second = tm.tm_sec;
        const time_t t = timegm(&tm); /* takes a 30th of February for the 2nd of March */
        *out_s = (int64_t)t;
        return gmtime_r(&t, &back) && back.tm_mday == day && back.tm_sec == second;
    }
    return false;
}

bool realm_args_double(realm_args *args, const char *option, const char *text, double least, double most, double *out) {
    char *rest, what[160];
    double v = strtod(text, &rest);
    if (rest != text && *rest == '\0' && isfinite(v) && v >= least && v <= most) {
        *out = v;
        return true;
    }
    snprintf(what, sizeof what, "%s takes a number from %g to %g, not ", option, least, most);
    (void)realm_args_usage(args, what, text);
    return false;
}

int realm_fail(const char *command, const realm_error *err) {
    char line[4 * REALM_ERROR_TEXT_MAX + 1];
    size_t n = 0;
    /* one line, whatever a file's name or its bytes are */
    for (const char *s = err->text[0] ? err->text : realm_status_text(err->code); *s; s++) {
        const unsigned char c = (unsigned char)*s;
        n += (size_t)snprintf(line + n, sizeof line - n, c < 0x20 || c == 0x7f ? "\\x%02X" : "%c", c);
    }
    fprintf(stderr, "realm: %s: %s\n", command, line);
    return REALM_EXIT_FAILED;
}

int realm_printed(const char *command) {
    if (fflush(stdout) == 0 && !ferror(stdout)) return REALM_EXIT_DONE;
    fprintf(stderr, "realm: %s: standard output: %s\n", command, strerror(errno));
    return REALM_EXIT_FAILED;
}

int realm_print(const char *command, realm_buf *out) {
    int status = REALM_EXIT_DONE;
    if (realm_buf_status(out) != REALM_OK) {
        fprintf(stderr, "realm: %s: %s\n", command, realm_status_text(realm_buf_status(out)));
        status = REALM_EXIT_FAILED;
    } else if (out->len > 0) {
        (void)fwrite(out->data, 1, out->len, stdout);
        status = realm_printed(command);
    }
    realm_buf_release(out);
    return status;
}

/* ---- folders and models ------------------------------------------------------------------------------------------ */

static char *xdg(const char *variable, const char *below_home, const char *leaf) {
    const char *base = getenv(variable), *home = getenv("HOME");
    if (base && base[0] == '/') return realm_path_join(base, leaf);
    if (!home || !home[0]) return NULL;
    char *dir = realm_path_join(home, below_home), *path = dir ? realm_path_join(dir, leaf) : NULL;
    realm_free(dir);
    return path;
}

char *realm_state_dir(const char *given) {
    return given ? realm_strdup(given) : xdg("XDG_STATE_HOME", ".local/state", "realm");
}

static char *models_folder(const char *given) {
    return given ? realm_strdup(given) : xdg("XDG_DATA_HOME", ".local/share", "realm/models");
}

realm_status realm_open_store(const char *state_dir, realm_store **out, realm_error *err) {
    char *dir = realm_state_dir(state_dir);
    realm_status s = dir ? realm_store_open(out, dir, err)
                         : realm_error_set(err, REALM_E_NOT_FOUND, "no state folder: set HOME or give --state");
    realm_free(dir);
    return s;
}

static bool ends_in_gguf(const char *s) {
    size_t n = strlen(s);
    return n > 5 && strcmp(s + n - 5, ".gguf") == 0;
}

realm_status realm_open_catalog(const char *models_dir, realm_catalog **out, realm_error *err) {
    char *dir = models_folder(models_dir), *cache = xdg("XDG_CACHE_HOME", ".cache", "realm/models");
    realm_catalog_config config = {.models_dir = dir, .cache_dir = cache};
    realm_status s =
        dir ? realm_catalog_open(out, &config, err)
            : realm_error_set(err, REALM_E_INVALID, "no folder for models: give --models-dir, or set HOME");
    realm_free(cache);
    realm_free(dir);
    return s;
}

realm_status realm_find_model(const char *name_or_file, const char *models_dir, char **path, realm_error *err) {
    *path = NULL;
    if (strchr(name_or_file, '/') || ends_in_gguf(name_or_file)) {
        *path = realm_strdup(name_or_file);
        return *path ? REALM_OK : realm_error_set(err, REALM_E_NOMEM, "out of memory");
    }
    realm_catalog *c;
    realm_status s = realm_open_catalog(models_dir, &c, err);
    if (s != REALM_OK) return s;
    s = realm_catalog_find(c, name_or_file, path, err);
    realm_catalog_close(c);
    return s;
}

char *realm_self_path(void) {
    char path[4096];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    return n > 0 ? realm_strndup(path, (size_t)n) : NULL;
}
