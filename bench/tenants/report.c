/* bench/tenants/report.c - the table of the tenants' bench, its samples, and what every part needs of the runtime. */
#include <sys/resource.h>

#include "bench.h"

static bool as_json, any;

void report_open(bool json) {
    as_json = json;
    if (json)
        printf("[");
    else
        printf("%-62s %12s %8s %12s %10s\n", "", "with", "", "without", "goal");
}

static void cell(double v, int width) {
    if (isnan(v))
        printf(" %*s", width, "");
    else if (fabs(v) < 10 && v != floor(v))
        printf(" %*.2f", width, v);
    else
        printf(" %*.*f", width, fabs(v) < 100 && v != floor(v) ? 1 : 0, v);
}

static void json_number(const char *name, double v) {
    if (!isnan(v)) printf(", \"%s\": %.6g", name, v);
}

static void line(const char *what, const char *unit, double with, double error, double without, double goal,
                 bool more) {
    bool met = isnan(goal) || (more ? with >= goal : with <= goal);
    if (as_json) {
        printf("%s\n{\"what\": \"%s\", \"unit\": \"%s\"", any ? "," : "", what, unit);
        json_number("with", with);
        json_number("error", error);
        json_number("without", without);
        json_number("goal", goal);
        if (!isnan(goal)) printf(", \"met\": %s", met ? "true" : "false");
        printf("}");
    } else {
        char label[96];
        snprintf(label, sizeof label, "%s, %s", what, unit);
        printf("%-62s", label);
        cell(with, 12);
        if (isnan(error))
            printf(" %8s", "");
        else
            printf(" +- %5.2f", error);
        cell(without, 12);
        cell(goal, 10);
        printf("%s\n", met ? "" : "  missed");
    }
    any = true;
    fflush(stdout);
}

void report(const char *what, const char *unit, double with, double without, double goal, bool more) {
    line(what, unit, with, NAN, without, goal, more);
}

void report_mean(const char *what, const char *unit, double with, double error, double without, double goal) {
    line(what, unit, with, error, without, goal, false);
}

void report_note(const char *text) {
    if (!as_json) printf("-- %s\n", text);
    fflush(stdout);
}

void report_close(void) {
    if (as_json) printf("\n]\n");
}

/* ---- samples ---- */

void sample_add(samples *s, double v) {
    if (s->n < SAMPLES_MAX) s->v[s->n++] = v;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

double sample_at(samples *s, double share) {
    if (s->n == 0) return NAN;
    qsort(s->v, s->n, sizeof *s->v, by_value);
    return s->v[REALM_MIN((size_t)((double)s->n * share), s->n - 1)];
}

double trimmed_mean(samples *s, double *error) {
    const size_t cut = s->n / 10, kept = s->n - 2 * cut;
    double sum = 0, squares = 0;
    (void)sample_at(s, 0); /* sorted from here on */
    for (size_t i = cut; i < s->n - cut; i++) sum += s->v[i];
    const double mean = sum / (double)kept;
    for (size_t i = 0; i < s->n; i++) { /* what was cut counts as the last that was not */
        const double v = s->v[REALM_MIN(REALM_MAX(i, cut), s->n - cut - 1)] - mean;
        squares += v * v;
    }
    *error = sqrt(squares / (double)(s->n - 1)) * sqrt((double)s->n) / (double)kept;
    return mean;
}

/* ---- the process ---- */

void die(const char *what, const realm_error *err) {
    fprintf(stderr, "bench-tenants: %s: %s\n", what, err->text);
    exit(1);
}

uint64_t resident_bytes(void) {
    unsigned long long size = 0, pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f || fscanf(f, "%llu %llu", &size, &pages) != 2) pages = 0;
    if (f) fclose(f);
    return pages * 4096;
}

uint64_t cpu_ns(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return ((uint64_t)u.ru_utime.tv_sec + (uint64_t)u.ru_stime.tv_sec) * REALM_NS_PER_S +
           ((uint64_t)u.ru_utime.tv_usec + (uint64_t)u.ru_stime.tv_usec) * REALM_NS_PER_US;
}

/* ---- runs ---- */

realm_tenant *tenant_open(bench *b, const char *name, const char *program) {
    realm_error err = {0};
    realm_tenant *t = NULL;
    char path[512], *wasm = NULL;
    size_t n = 0;
    if (program) {
        snprintf(path, sizeof path, BENCH_BUILD "/%s", program);
        if (realm_file_read(path, REALM_MODULE_BYTES_MAX, &wasm, &n, &err)) die(path, &err);
    }
    realm_status s = realm_store_tenant_create(realm_runtime_store(b->rt), name, NULL, wasm, n, NULL, &err);
    if ((s && s != REALM_E_EXISTS) || realm_runtime_tenant(b->rt, name, &t, &err)) die(name, &err);
    realm_free(wasm);
    return t;
}

void client_init(client *c) {
    memset(c, 0, sizeof *c);
    realm_mutex_init(&c->mu, REALM_RANK_LEAF);
    realm_cond_init(&c->cond);
    realm_event_batch_init(&c->batch);
}

void client_release(client *c) {
    realm_event_batch_release(&c->batch);
    realm_cond_destroy(&c->cond);
    realm_mutex_destroy(&c->mu);
}

void client_on_ready(void *user) {
    client *c = user;
    realm_mutex_lock(&c->mu);
    bool wake = !c->ready;
    c->ready = true;
    realm_mutex_unlock(&c->mu);
    if (wake) realm_cond_signal(&c->cond);
}

void client_wait(client *c) {
    realm_mutex_lock(&c->mu);
    while (!c->ready) realm_cond_wait(&c->cond, &c->mu);
    c->ready = false;
    realm_mutex_unlock(&c->mu);
}

#define PROMPT "Once upon a time"
void client_begin(client *c, realm_tenant *t, uint32_t max_tokens) {
    realm_error err = {0};
    char input[128];
    int len = snprintf(input, sizeof input, "{\"endpoint\":\"completion\",\"prompt\":\"" PROMPT "\",\"max_tokens\":%u}",
                       max_tokens);
    realm_run_params p = {.input = input,
                          .input_len = (size_t)len,
                          .kind = REALM_PROMPT_TEXT,
                          .prompt = PROMPT,
                          .prompt_len = sizeof PROMPT - 1,
                          .on_ready = client_on_ready,
                          .user = c};
    realm_sampling_init(&p.generation.sampling);
    p.generation.sampling.temperature = 0;
    p.generation.max_tokens = max_tokens;
    p.generation.ignore_end = true;
    c->ready = false;
    c->n_tokens = 0;
    c->first_ns = c->last_ns = 0;
    realm_served *m = realm_runtime_hold(realm_tenant_runtime(t), "model");
    if (realm_request_open(t, m, NULL, &c->request, &err) || realm_run_start(c->request, &p, &c->run, &err))
        die(realm_tenant_name(t), &err);
    realm_served_release(m);
}

bool client_poll(client *c) {
    bool ended = false;
    while (!ended && realm_run_poll(c->run, &c->batch) > 0) {
        ended = c->batch.events[c->batch.n_events - 1].kind == REALM_EVENT_END;
        if (c->batch.n_events > ended) {
            c->last_ns = realm_clock_ns();
            if (!c->first_ns) c->first_ns = c->last_ns;
            c->n_tokens += (uint32_t)(c->batch.n_events - ended);
        }
    }
    if (!ended) return false;
    c->completion_tokens = c->batch.completion_tokens;
    if (c->batch.events[c->batch.n_events - 1].finish == REALM_FINISH_ERROR) die("a run", &c->batch.error);
    realm_run_release(c->run);
    realm_request_close(c->request);
    c->run = NULL;
    c->request = NULL;
    return true;
}

void client_finish(client *c) {
    while (!client_poll(c)) client_wait(c);
}

static int usage(void) {
    fprintf(stderr, "usage: tenants MODEL.gguf [--part sandbox|tokens|scale] [--rounds N] [--output json]\n");
    return 2;
}

/* As a server has them: store, ledger and compiled programs on disk. Goes also where the bench cannot go on. */
static char state_dir[] = "/tmp/realm-bench-XXXXXX";
static void remove_state(void) {
    char command[64];
    snprintf(command, sizeof command, "rm -rf '%s'", state_dir);
    if (system(command)) fprintf(stderr, "bench-tenants: %s is left\n", state_dir);
}

int main(int argc, char **argv) {
    if (argc == 5 && !strcmp(argv[2], "compile-child")) realm_sandbox_compile_child(argc - 3, argv + 3);
    const char *part = NULL;
    unsigned long rounds = 120;
    bool json = false;
    if (argc < 2 || argc % 2 != 0) return usage();
    for (int i = 2; i < argc; i += 2) {
        if (!strcmp(argv[i], "--part"))
            part = argv[i + 1];
        else if (!strcmp(argv[i], "--rounds"))
            rounds = strtoul(argv[i + 1], NULL, 10);
        else if (!strcmp(argv[i], "--output") && !strcmp(argv[i + 1], "json"))
            json = true;
        else
            return usage();
    }
    const bool sandbox = !part || !strcmp(part, "sandbox"), tokens = !part || !strcmp(part, "tokens"),
               scale = !part || !strcmp(part, "scale");
    if ((!sandbox && !tokens && !scale) || rounds < 10 || rounds > SAMPLES_MAX) return usage();
    report_open(json);
    if (sandbox) bench_sandbox();
    realm_error err = {0};
    bench b = {.path = argv[1], .rounds = (uint32_t)rounds};
    realm_runtime_config config = {.state_dir = mkdtemp(state_dir), .compiler_path = "/proc/self/exe"};
    (void)atexit(remove_state);
    if (realm_runtime_open(&b.rt, &config, &err) ||
        realm_runtime_add_model(b.rt, "model", argv[1], NULL, NULL, NULL, &err))
        die("open", &err);
    realm_served *model = realm_runtime_hold(b.rt, "model");
    b.engine = realm_served_engine(model);
    b.rss_model = resident_bytes();
    if (tokens) bench_tokens(&b);
    if (scale) bench_scale(&b);
    realm_served_release(model);
    realm_runtime_close(b.rt);
    report_close();
    return 0;
}
