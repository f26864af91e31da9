/* grammar/compile.c - a text to a grammar, within limits.
 *
 *      caller: check the text --start--> [ own thread: build, first mask, place of an error ] --done--> caller
 *                                 |                                                             |
 *                                 +---------- REALM_E_TIMEOUT: the thread ends by itself <------+
 *
 * The library recurses over definitions and allocates, and it cannot be interrupted before a matcher exists. So it runs
 * on a thread with a large stack, the caller waits for a limited time, and a job that nobody waits for any more ends by
 * the library's own budgets and frees itself. A few run at a time for a vocabulary, of several clients in turn
 * (turns.h). Nothing is cached here: texts come from clients, and what one tenant has compiled another could see by its
 * time.
 *
 * The first mask is computed here too: a grammar that matches nothing at all, or whose first step is too much work, is
 * refused before it is used.
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/utf8.h"
#include "grammar/internal.h"

#define COMPILE_NS (3 * UINT64_C(1000000000)) /* of the processor */
#define COMPILE_WALL_NS (5 * COMPILE_NS)
#define WAIT_NS COMPILE_NS              /* for a place */
#define COMPILE_NICE 5                  /* it gives way to tokens, and still gets on beside them */
#define STACK_BYTES ((size_t)128 << 20) /* of addresses; touched as deep as a text goes */

/* Between two tokens of JSON the library takes any run of blanks, and small models that are kept to a schema like to go
 * on with line ends until their tokens are used up. One space, or one line end and an indentation, is all that people
 * and programs write. A schema may have its own "x-guidance"; the last one counts. */
#define BLANKS "\"x-guidance\":{\"whitespace_pattern\":\"\\\\x20|\\\\r?\\\\n[\\\\x20\\\\x09]{0,40}\"}"
#define JSON_BLANKS " \t\r\n"

typedef struct compile_job {
    realm_grammar_vocab *v;
    realm_grammar_kind kind;
    char *text; /* NUL-terminated */
    size_t len;
    char *built; /* what the library gets: the text, a schema with BLANKS in it */
    uint64_t owner;
    uint64_t deadline_ns; /* of the search for an error's place */
    /* mu */
    realm_mutex mu;
    realm_cond done;
    bool started, finished, abandoned;
    clockid_t cpu; /* of its thread, from started to finished */
    LlgMatcher *m; /* NULL: error */
    realm_error error;
} compile_job;

/* ---- errors ----------------------------------------------------------------------------------------------------- */

static bool mentions(const char *text, size_t len, const char *word) { return memmem(text, len, word, strlen(word)); }

/* Which character the line of blanks and one ^ below a pattern points to, from 1; 0 without such a line. */
static size_t marked_column(const char *text) {
    for (const char *line = text; line; line = strchr(line, '\n')) {
        if (*line == '\n') line++;
        size_t blanks = strspn(line, " ");
        if (line[blanks] == '^' && blanks >= 4) return blanks - 3; /* the pattern stands indented by four */
    }
    return 0;
}

realm_status grammar_error(realm_error *err, realm_status otherwise, const char *text) {
    static const char *const limits[] = {"too many", "too big", "too large", "too complex", "too deeply",
                                         "limit",    "fuel",    "exceeds",   "items; max"};
    size_t len = strcspn(text, "\n"); /* what follows are excerpts, states, traces */
    realm_status status = otherwise;
    if (strncmp(text, "panic", 5) == 0) return realm_error_set(err, REALM_E_INTERNAL, "the grammar cannot be handled");
    if (strncmp(text, "NoExtensionBias", 15) == 0)
        return realm_error_set(err, otherwise, "no text can satisfy the grammar from here on");
    for (size_t i = 0; i < REALM_ARRAY_LEN(limits); i++)
        if (mentions(text, len, limits[i])) status = REALM_E_LIMIT;
    const char *why = strstr(text, "\nerror: ");
    if (why && mentions(text, len, "regex parse error")) {
        why += strlen("\nerror: ");
        return realm_error_set(err, status, "regular expression, character %zu: %.*s", marked_column(text),
                               (int)REALM_MIN(strcspn(why, "\n"), (size_t)200), why);
    }
    return realm_error_set(err, status, "%.*s", (int)REALM_MIN(len, (size_t)300), text);
}

/* The text is JSON; `true` and `false` have no room for it. NULL: no memory. */
static char *with_blanks(const char *text, size_t len) {
    size_t at = strspn(text, JSON_BLANKS) + 1, size = len + sizeof BLANKS + 1;
    if (at > len || text[at - 1] != '{') return realm_strndup(text, len);
    bool alone = text[at + strspn(text + at, JSON_BLANKS)] == '}';
    char *out = realm_malloc(size);
    if (out) snprintf(out, size, "%.*s" BLANKS "%s%s", (int)at, text, alone ? "" : ",", text + at);
    return out;
}

/* ---- on the job's thread ---------------------------------------------------------------------------------------- */

LlgMatcher *grammar_build(const realm_grammar_vocab *v, realm_grammar_kind kind, const char *text) {
    LlgConstraintInit init;
    memset(&init, 0, sizeof init);
    llg_constraint_init_set_defaults(&init, v->llg);
    init.log_buffer_level = init.log_stderr_level = 0;
    /* The library's own proportions; less memory for lexer states, as each running state has its own. */
    init.limits = (LlgParserLimits){.max_items_in_row = 2000,
                                    .initial_lexer_fuel = 1000000,
                                    .step_lexer_fuel = 200000,
                                    .step_max_items = 50000,
                                    .max_lexer_states = 20000,
                                    .max_grammar_size = 200000,
                                    .precompute_large_lexemes = true,
                                    .verbose_errors = false};
    const char *tag = kind == REALM_GRAMMAR_KIND_JSON_SCHEMA ? "json_schema"
                      : kind == REALM_GRAMMAR_KIND_REGEX     ? "regex"
                                                             : "lark";
    return llg_new_matcher(&init, tag, text);
}

/* The library's text for what is wrong, NULL when nothing is. */
static const char *try_first_step(const compile_job *j, LlgMatcher *m) {
    const char *text = llg_matcher_get_error(m);
    if (text) return text;
    LlgCancellationHandle *cancel = llg_matcher_get_cancellation_handle(m);
    const int place = grammar_call_begin(j->v, cancel);
    const bool ok =
        llg_matcher_consume_tokens(m, NULL, 0) == 0 && (llg_matcher_is_stopped(m) || llg_matcher_compute_mask(m) == 0);
    grammar_call_end(j->v, place);
    const bool slow = llg_matcher_is_cancelled(m);
    llg_free_cancellation_handle(cancel);
    if (slow) return "the first step takes too long, which exceeds the limit of work for one token";
    if (ok && !llg_matcher_is_error(m)) return NULL;
    text = llg_matcher_get_error(m);
    return text ? text : "the grammar fails at once";
}

static void compile(compile_job *j, LlgMatcher **out, realm_error *err) {
    LlgMatcher *m = grammar_build(j->v, j->kind, j->built);
    const char *text = try_first_step(j, m);
    if (!text) {
        *out = m;
        return;
    }
    realm_status s = grammar_error(err, REALM_E_FORMAT, text);
    if (j->kind == REALM_GRAMMAR_KIND_JSON_SCHEMA && s == REALM_E_FORMAT) {
        char path[256];
        grammar_find_path(j->v, j->text, j->len, text, j->deadline_ns, path, sizeof path);
        (void)realm_error_prefix(err, "schema at %s", path);
    }
    llg_free_matcher(m);
}

static void job_free(compile_job *j) {
    if (j->m) llg_free_matcher(j->m);
    realm_cond_destroy(&j->done);
    realm_mutex_destroy(&j->mu);
    realm_free(j->text);
    realm_free(j->built);
    realm_free(j);
}

static void *job_main(void *arg) {
    compile_job *j = arg;
    realm_grammar_vocab *v = j->v;
    const uint64_t owner = j->owner;
    LlgMatcher *m = NULL;
    realm_error err = {0};
    (void)nice(COMPILE_NICE); /* Linux: this thread's alone */
    realm_mutex_lock(&j->mu);
    j->started = pthread_getcpuclockid(pthread_self(), &j->cpu) == 0;
    realm_mutex_unlock(&j->mu);
    compile(j, &m, &err);
    realm_mutex_lock(&j->mu);
    j->m = m;
    j->error = err;
    j->finished = true;
    const bool alone = j->abandoned;
    realm_cond_signal(&j->done);
    realm_mutex_unlock(&j->mu);
    if (alone) job_free(j);
    grammar_turns_give(&v->turns, owner); /* the vocabulary may be closed right after */
    return NULL;
}

static realm_status start(compile_job *j, realm_error *err) {
    pthread_attr_t attr;
    pthread_t t;
    sigset_t all, old;
    if (pthread_attr_init(&attr) != 0) return realm_error_set(err, REALM_E_NOMEM, "no memory for a thread");
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int e = pthread_attr_setstacksize(&attr, STACK_BYTES);
    if (e == 0) e = pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    if (e == 0) e = pthread_create(&t, &attr, job_main, j);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    return e == 0 ? REALM_OK
                  : realm_error_set(err, REALM_E_NOMEM, "cannot start a thread for a grammar: %s", strerror(e));
}

/* ---- the caller's side ------------------------------------------------------------------------------------------ */

/* Of the processor, not of the wall: a busy machine is not the text's fault. `mu` is held. */
static uint64_t spent_ns(const compile_job *j) {
    struct timespec t = {0};
    if (!j->started || clock_gettime(j->cpu, &t) != 0) return 0;
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

/* Waits for a job that was started; frees it or leaves it to its thread. Moves its matcher out. */
static realm_status wait_for(compile_job *j, LlgMatcher **m, realm_error *err) {
    const uint64_t most = realm_clock_ns() + COMPILE_WALL_NS;
    uint64_t spent = 0, now;
    realm_mutex_lock(&j->mu);
    while (!j->finished && (spent = spent_ns(j)) < COMPILE_NS && (now = realm_clock_ns()) < most)
        (void)realm_cond_wait_until(&j->done, &j->mu, REALM_MIN(most, now + (COMPILE_NS - spent)));
    const bool finished = j->finished;
    j->abandoned = !finished;
    realm_mutex_unlock(&j->mu);
    if (!finished && spent < COMPILE_NS)
        return realm_error_set(err, REALM_E_BUSY, "the machine is too busy to compile a grammar");
    if (!finished)
        return realm_error_set(err, REALM_E_TIMEOUT, "the grammar could not be compiled within %u seconds",
                               (unsigned)(COMPILE_NS / UINT64_C(1000000000)));
    *m = j->m;
    j->m = NULL;
    realm_status s = *m ? REALM_OK : realm_error_set(err, j->error.code, "%s", j->error.text);
    job_free(j);
    return s;
}

static realm_status check_bytes(const char *text, size_t len, realm_error *err) {
    if (len > REALM_GRAMMAR_BYTES_MAX)
        return realm_error_set(err, REALM_E_LIMIT, "the grammar has %zu bytes, at most %u are taken", len,
                               REALM_GRAMMAR_BYTES_MAX);
    if (memchr(text, 0, len)) return realm_error_set(err, REALM_E_FORMAT, "the grammar contains a NUL byte");
    if (!realm_utf8_valid(text, len)) return realm_error_set(err, REALM_E_FORMAT, "the grammar is not valid UTF-8");
    return REALM_OK;
}

realm_status realm_grammar_compile(realm_grammar_vocab *v, uint64_t owner, realm_grammar_kind kind, const char *text,
                                   size_t len, realm_grammar **out, realm_error *err) {
    *out = NULL;
    if ((int)kind < REALM_GRAMMAR_KIND_JSON_SCHEMA || kind > REALM_GRAMMAR_KIND_LARK)
        return realm_error_set(err, REALM_E_RANGE, "grammar kind %d is not known", (int)kind);
    realm_status s = check_bytes(text, len, err);
    if (s == REALM_OK) s = grammar_check_text(kind, text, len, err);
    if (s != REALM_OK) return s;
    realm_grammar *g = realm_calloc(1, sizeof *g);
    compile_job *j = g ? realm_calloc(1, sizeof *j) : NULL;
    if (j) j->text = realm_strndup(text, len);
    if (j && j->text)
        j->built = kind == REALM_GRAMMAR_KIND_JSON_SCHEMA ? with_blanks(j->text, len) : realm_strndup(text, len);
    if (!j || !j->built) {
        if (j) realm_free(j->text);
        realm_free(j);
        realm_free(g);
        return realm_error_set(err, REALM_E_NOMEM, "no memory to compile a grammar");
    }
    realm_mutex_init(&j->mu, REALM_RANK_LEAF);
    realm_cond_init(&j->done);
    j->v = v;
    j->kind = kind;
    j->len = len;
    j->owner = owner;
    if ((s = grammar_turns_take(&v->turns, owner, realm_clock_ns() + WAIT_NS, err)) != REALM_OK) {
        job_free(j);
        realm_free(g);
        return s;
    }
    j->deadline_ns = realm_clock_ns() + COMPILE_NS;
    if ((s = start(j, err)) != REALM_OK) {
        grammar_turns_give(&v->turns, owner);
        job_free(j);
    } else {
        s = wait_for(j, &g->start, err);
    }
    if (s != REALM_OK) {
        realm_free(g);
        return s;
    }
    g->vocab = v;
    realm_mutex_init(&g->mu, REALM_RANK_LEAF);
    atomic_init(&g->refs, 1);
    *out = g;
    return REALM_OK;
}

realm_grammar *realm_grammar_retain(realm_grammar *g) {
    /* relaxed: the caller holds a reference already. */
    (void)atomic_fetch_add_explicit(&g->refs, 1, memory_order_relaxed);
    return g;
}

void realm_grammar_release(realm_grammar *g) {
    /* acq_rel: the last holder sees all that the others wrote before it frees. */
    if (!g || atomic_fetch_sub_explicit(&g->refs, 1, memory_order_acq_rel) != 1) return;
    llg_free_matcher(g->start);
    realm_mutex_destroy(&g->mu);
    realm_free(g);
}
