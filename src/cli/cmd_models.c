/* cli/cmd_models.c - `realm models list`, `pull NAME`, `remove NAME`: the catalogue at the command line. */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/str.h"
#include "cli/args.h"
#include "cli/cli.h"
#include "cli/listing.h"

#define OUTPUT_MAX ((size_t)16 << 20)
#define QUIET_NS (2 * REALM_NS_PER_S) /* what is quicker needs no progress */
#define BAR_CELLS 30

enum { OPT_MODELS_DIR = 1, OPT_FROM, OPT_SHA256 };
static const realm_option options[] = {
    {"--models-dir", OPT_MODELS_DIR, true}, {"--from", OPT_FROM, true}, {"--sha256", OPT_SHA256, true}, {0}};

static const char usage[] = "usage: realm models list\n"
                            "       realm models pull NAME [--from FILE-or-URL] [--sha256 HEX]\n"
                            "       realm models remove NAME\n";
static const char help[] =
    "\nModels by name. What is pulled can be used as `--model NAME` from then on.\n\n"
    "  --models-dir DIR   where models are kept (default $XDG_DATA_HOME/realm/models)\n"
    "  --from F           pull from this file or https URL; without it from where index.yaml in the models\n"
    "                     folder says (docs/models.md)\n"
    "  --sha256 HEX       what it must have; required with an URL\n";

/* "98.4 MB", as files are shown by others. */
static const char *bytes_text(uint64_t n, char out[24]) {
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    double v = (double)n;
    size_t u = 0;
    while (v >= 999.5 && u + 1 < REALM_ARRAY_LEN(units)) v /= 1000, u++;
    snprintf(out, 24, u == 0 || v >= 99.95 ? "%.0f %s" : "%.1f %s", v, units[u]);
    return out;
}

/* ---- list -------------------------------------------------------------------------------------------------------- */

static const char *const states[] = {[REALM_CATALOG_INSTALLED] = "installed",
                                     [REALM_CATALOG_CACHED] = "cached",
                                     [REALM_CATALOG_BROKEN] = "broken",
                                     [REALM_CATALOG_PARTIAL] = "partial",
                                     [REALM_CATALOG_AVAILABLE] = "available"};

typedef struct model_listing {
    realm_listing l;
    size_t n;
} model_listing;

static void put(realm_json_writer *w, const char *key, const char *text) {
    realm_json_key(w, key);
    realm_json_write_cstr(w, text && text[0] ? text : NULL);
}

static void list_json(realm_json_writer *w, const realm_catalog_entry *e) {
    realm_json_begin_object(w);
    put(w, "name", e->name);
    put(w, "state", states[e->state]);
    put(w, "architecture", e->architecture);
    realm_json_key(w, "context_length");
    if (e->context_length)
        realm_json_write_uint(w, e->context_length);
    else
        realm_json_write_null(w);
    realm_json_key(w, "bytes");
    if (e->bytes)
        realm_json_write_uint(w, e->bytes);
    else
        realm_json_write_null(w);
    if (e->state == REALM_CATALOG_PARTIAL) {
        realm_json_key(w, "have_bytes");
        realm_json_write_uint(w, e->have_bytes);
    }
    put(w, "sha256", e->sha256);
    put(w, "source", e->source);
    put(w, "path", e->path);
    if (e->description[0]) put(w, "description", e->description);
    if (e->problem) put(w, "problem", e->problem);
    realm_json_end_object(w);
}

static void list_text(realm_buf *out, const realm_catalog_entry *e) {
    char size[24] = "-", have[24], context[16] = "-", from[256];
    if (e->bytes) bytes_text(e->bytes, size);
    if (e->state == REALM_CATALOG_PARTIAL) bytes_text(e->have_bytes, size);
    if (e->context_length) snprintf(context, sizeof context, "%" PRIu32, e->context_length);
    const char *last = e->problem ? e->problem : e->source;
    (void)realm_buf_printf(out, "%-32s %-10s %-8s %9s %8s  %-12.12s  %s", e->name, states[e->state],
                           e->architecture[0] ? e->architecture : "-", size, context, e->sha256[0] ? e->sha256 : "-",
                           last[0] ? realm_escape(from, sizeof from, last, strlen(last)) : "-");
    if (e->state == REALM_CATALOG_PARTIAL && e->bytes)
        (void)realm_buf_printf(out, " (of %s)", bytes_text(e->bytes, have));
    (void)realm_buf_putc(out, '\n');
}

static void list_one(void *user, const realm_catalog_entry *e) {
    model_listing *m = user;
    if (m->l.json) {
        list_json(&m->l.w, e);
    } else {
        if (m->n == 0)
            (void)realm_buf_printf(&m->l.out, "%-32s %-10s %-8s %9s %8s  %-12s  %s\n", "NAME", "STATE", "ARCH", "SIZE",
                                   "CONTEXT", "SHA-256", "FROM");
        list_text(&m->l.out, e);
    }
    m->n++;
}

static int list(realm_catalog *c, bool json, realm_error *err) {
    model_listing m = {0};
    realm_listing_begin(&m.l, json);
    realm_status s = realm_catalog_each(c, list_one, &m, err);
    if (s == REALM_OK && !json && m.n == 0)
        fputs("no models; `realm models pull --help` says where they come from\n", stderr);
    return realm_listing_end(&m.l, "models list", s, err);
}

/* ---- pull -------------------------------------------------------------------------------------------------------- */

typedef struct pull_view {
    const char *name;
    uint64_t begin_ns, shown_ns;
    bool terminal, drawn;
} pull_view;

static volatile sig_atomic_t interrupted;

static void on_interrupt(int sig) {
    (void)sig;
    interrupted = 1;
}

/* A bar on a terminal, now and then a line elsewhere. */
static bool on_progress(void *user, uint64_t done, uint64_t total) {
    pull_view *v = user;
    char had[24], all[24];
    uint64_t now = realm_clock_ns();
    if (now - v->begin_ns < QUIET_NS) return !interrupted;
    if (now - v->shown_ns < (v->terminal ? 200 * REALM_NS_PER_MS : 10 * REALM_NS_PER_S) && done < total)
        return !interrupted;
    v->shown_ns = now;
    bytes_text(done, had);
    bytes_text(total, all);
    unsigned percent = total ? (unsigned)((double)done * 100 / (double)total) : 0;
    if (v->terminal) {
        char bar[BAR_CELLS + 1];
        for (unsigned i = 0; i < BAR_CELLS; i++) bar[i] = i * 100 < percent * BAR_CELLS ? '#' : '.';
        bar[BAR_CELLS] = '\0';
        fprintf(stderr, "\r%s [%s] %3u%%  %s of %s\033[K", v->name, bar, percent, had, all);
        v->drawn = true;
    } else {
        fprintf(stderr, "realm: pulling %s: %u%%, %s of %s\n", v->name, percent, had, all);
    }
    return !interrupted;
}

static void on_waiting(void *user) {
    const pull_view *v = user;
    fprintf(stderr, "realm: %s is being pulled already, waiting for it\n", v->name);
}

static int pull(realm_catalog *c, const char *name, const realm_catalog_source *source, bool json, realm_error *err) {
    pull_view v = {.name = name, .begin_ns = realm_clock_ns(), .terminal = isatty(STDERR_FILENO) == 1};
    realm_catalog_watch watch = {on_progress, on_waiting, &v};
    realm_catalog_pulled done;
    struct sigaction act = {.sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND}; /* a second one ends it */
    sigaction(SIGINT, &act, NULL);
    sigaction(SIGTERM, &act, NULL);
    realm_status s = realm_catalog_pull(c, name, source->location ? source : NULL, &watch, &done, err);
    if (v.drawn) fputs("\r\033[K", stderr);
    if (s != REALM_OK) return realm_fail("models pull", err);
    realm_buf out;
    realm_buf_init(&out, OUTPUT_MAX);
    if (json) {
        realm_json_writer w;
        realm_json_writer_init(&w, &out);
        realm_json_begin_object(&w);
        put(&w, "name", name);
        realm_json_key(&w, "bytes");
        realm_json_write_uint(&w, done.bytes);
        realm_json_key(&w, "fetched_bytes");
        realm_json_write_uint(&w, done.fetched_bytes);
        put(&w, "sha256", done.sha256);
        realm_json_end_object(&w);
        (void)realm_buf_putc(&out, '\n');
    } else {
        char size[24];
        (void)realm_buf_printf(&out, "%s %s: %s, SHA-256 %.12s\n", name, done.was_there ? "is installed" : "installed",
                               bytes_text(done.bytes, size), done.sha256);
    }
    return realm_print("models pull", &out);
}

/* ---- remove ------------------------------------------------------------------------------------------------------ */

static int remove_model(realm_catalog *c, const char *name, bool json, realm_error *err) {
    uint64_t freed;
    if (realm_catalog_remove(c, name, &freed, err) != REALM_OK) return realm_fail("models remove", err);
    realm_buf out;
    realm_buf_init(&out, OUTPUT_MAX);
    if (json) {
        realm_json_writer w;
        realm_json_writer_init(&w, &out);
        realm_json_begin_object(&w);
        put(&w, "name", name);
        realm_json_key(&w, "freed_bytes");
        realm_json_write_uint(&w, freed);
        realm_json_end_object(&w);
        (void)realm_buf_putc(&out, '\n');
    } else {
        char size[24];
        (void)realm_buf_printf(&out, "%s removed: %s freed\n", name, bytes_text(freed, size));
    }
    return realm_print("models remove", &out);
}

int realm_cmd_models(int argc, char **argv) {
    realm_args args = {.command = "models",
                       .usage = usage,
                       .help = help,
                       .options = options,
                       .words_max = 2,
                       .prints_data = true,
                       .argc = argc,
                       .argv = argv};
    const char *value, *models_dir = NULL;
    realm_catalog_source source = {0};
    for (int id; (id = realm_args_next(&args, &value)) != 0;) {
        switch (id) {
        case OPT_MODELS_DIR: models_dir = value; break;
        case OPT_FROM: source.location = value; break;
        case OPT_SHA256: source.sha256 = value; break;
        default: return args.status;
        }
    }
    enum { LIST, PULL, REMOVE };
    static const realm_action actions[] = {
        [LIST] = {"list", NULL}, [PULL] = {"pull", "a name"}, [REMOVE] = {"remove", "a name"}};
    int action = realm_args_action(&args, actions, REALM_ARRAY_LEN(actions));
    if (action < 0) return args.status;
    if (action != PULL && (source.location || source.sha256))
        return realm_args_usage(&args, "--from and --sha256 are for pull, not ", args.words[0]);
    if (source.sha256 &&
        (strlen(source.sha256) != 64 || source.sha256[strspn(source.sha256, "0123456789abcdefABCDEF")]))
        return realm_args_usage(&args, "--sha256 takes 64 hexadecimal digits, not ", source.sha256);
    if (source.sha256 && !source.location) return realm_args_usage(&args, "--sha256 goes with --from", "");

    signal(SIGPIPE, SIG_IGN);
    realm_error err = {0};
    realm_catalog *c;
    if (realm_open_catalog(models_dir, &c, &err) != REALM_OK) return realm_fail("models", &err);
    const char *name = args.words[1];
    int status = action == LIST   ? list(c, args.json, &err)
                 : action == PULL ? pull(c, name, &source, args.json, &err)
                                  : remove_model(c, name, args.json, &err);
    realm_catalog_close(c);
    return status;
}
