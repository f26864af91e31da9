/* bench/linear.c - packed matrix products alone: how near they come to the machine's two floors.
 *
 *   build/bench/linear [threads [level [type [rows x cols]]]]       e.g. build/bench/linear 2 vnni Q4_1 2048x5632
 *
 * For each type, shape and batch size the LINEAR op (quantisation and barriers included) runs over enough copies of the
 * weight that no cache holds them, as a model's layers would come by. Printed: GB/s of packed weights for one row, GOPS
 * (2 per multiply-add) for more; in the first line the memory bandwidth that a plain read reaches in the same process.
 * Every figure is the best of several rounds: machines are shared, and the floor is what is asked for.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "compute/cpu/kernels.h"
#include "compute/cpu/pack.h"

#define WORKING_SET ((size_t)192 << 20)
#define MAX_COPIES 256u
#define ROUND_NS (2 * REALM_NS_PER_MS) /* short: one that nobody else interrupts is among them */
#define ROUNDS 60

typedef struct bench_run {
    const realm_cpu_kernels *kernels;
    realm_linear_args *args;
    realm_weight *copies;
    uint32_t n_copies, n_runs, first;
} bench_run;

static void product_worker(realm_worker *w, void *user) {
    bench_run *b = user;
    for (uint32_t i = 0; i < b->n_runs; i++) {
        realm_linear_args a = *b->args;
        a.w[0] = &b->copies[(b->first + i) % b->n_copies];
        realm_cpu_linear(w, b->kernels, &a);
    }
}

typedef struct read_run {
    const uint64_t *data;
    size_t n;
    uint64_t sums[256];
} read_run;
/* 64 bytes at a time into four sums: fewer, narrower ones wait for their additions instead of for memory. */
typedef uint64_t wide __attribute__((vector_size(64)));
static void read_worker(realm_worker *w, void *user) {
    read_run *r = user;
    const size_t part = r->n / w->n / 32 * 32;
    const wide *p = (const wide *)(const void *)(r->data + part * w->id);
    wide s[4] = {{0}};
    for (size_t i = 0; i < part / 8; i += 4)
        for (unsigned j = 0; j < 4; j++) s[j] += p[i + j];
    const wide all = s[0] + s[1] + s[2] + s[3];
    for (unsigned j = 0; j < 8; j++) r->sums[w->id % 256] += all[j];
}

static double bandwidth(realm_team *team) {
    size_t bytes = (size_t)256 << 20, part = bytes / 8 / 4;
    uint64_t *data = realm_pages_map(bytes);
    if (!data) return 0;
    memset(data, 1, bytes);
    read_run *r = realm_calloc(1, sizeof *r);
    double best = 0;
    for (int i = 0; r && i < ROUNDS; i++) {
        *r = (read_run){.data = data + part * ((size_t)i % 4), .n = part};
        uint64_t t = realm_clock_ns();
        realm_team_run(team, read_worker, r);
        double gbs = (double)part * 8 / (double)(realm_clock_ns() - t);
        if (gbs > best) best = gbs;
    }
    realm_free(r);
    realm_pages_unmap(data, bytes);
    return best;
}

/* One weight of random values; a few rows are quantised and repeated, which is as good as all of them here. */
static uint8_t *random_weight(const realm_type_info *info, uint64_t rows, uint64_t k) {
    uint64_t row_bytes;
    if (!realm_type_row_bytes(info, k, &row_bytes)) return NULL;
    uint8_t *data = realm_pages_map(row_bytes * rows);
    float *x = realm_malloc(k * sizeof *x);
    if (!data || !x) return NULL;
    uint64_t seed = 1;
    for (uint64_t r = 0; r < rows; r++) {
        if (r >= 8) {
            memcpy(data + r * row_bytes, data + r % 8 * row_bytes, row_bytes);
            continue;
        }
        for (uint64_t i = 0; i < k; i++) {
            seed = seed * UINT64_C(6364136223846793005) + 1;
            x[i] = (float)(int32_t)(seed >> 32) * 0x1p-31f;
        }
        info->quantize(x, data + r * row_bytes, k);
    }
    realm_free(x);
    return data;
}

static double best_seconds(realm_team *team, bench_run *b) {
    double best = 1e9;
    b->n_runs = 1;
    for (int i = 0; i < ROUNDS + 1; i++) {
        b->first += b->n_runs; /* goes on where the last round stopped: no cache still holds it */
        uint64_t t = realm_clock_ns();
        realm_team_run(team, product_worker, b);
        uint64_t ns = realm_clock_ns() - t;
        if (i > 0 && (double)ns / b->n_runs < best) best = (double)ns / b->n_runs;
        if (i == 0) b->n_runs = (uint32_t)REALM_MIN((uint64_t)100000, ROUND_NS / (ns + 1) + 1);
        if (i > 2 && ns > 20 * ROUND_NS) break;
    }
    return best * 1e-9;
}

static void bench_shape(realm_team *team, const realm_cpu_kernels *kernels, const realm_type_info *info, uint64_t rows,
                        uint64_t k) {
    static const uint32_t batch[] = {1, 2, 3, 4, 8, 16, 32, 512};
    uint8_t *data = random_weight(info, rows, k);
    if (!data) return;
    realm_weight copies[MAX_COPIES];
    uint32_t n_copies = 0;
    size_t bytes = 0;
    uint64_t packing = realm_clock_ns();
    while (n_copies < MAX_COPIES && (n_copies == 0 || bytes < WORKING_SET)) {
        realm_weight_desc d = {info, rows, k, data, REALM_WEIGHT_LINEAR};
        copies[n_copies] = (realm_weight){.type = info, .rows = rows, .cols = k};
        if (realm_cpu_pack(team, &d, &copies[n_copies].packed, NULL) != REALM_OK) break;
        bytes += realm_cpu_packed_bytes(copies[n_copies++].packed);
    }
    packing = realm_clock_ns() - packing;
    float *x = realm_pages_map(512 * k * sizeof *x), *y = realm_pages_map(512 * rows * sizeof *y);
    void *quantized = realm_pages_map(realm_linear_quantized_bytes(512, k));
    if (n_copies && x && y && quantized) {
        for (size_t i = 0; i < 512 * k; i++) x[i] = (float)((i * 2654435761u) & 1023) - 511.0f;
        printf("%-5s %6llux%-5llu", info->name, (unsigned long long)rows, (unsigned long long)k);
        for (size_t i = 0; i < REALM_ARRAY_LEN(batch); i++) {
            if (rows > 20000 && batch[i] > 64) continue;
            realm_linear_args a = {
                .x = x, .n_rows = batch[i], .n_weights = 1, .y = {y}, .pass_by = true, .quantized = quantized};
            bench_run b = {kernels, &a, copies, n_copies, 0, 0};
            double s = best_seconds(team, &b);
            if (batch[i] == 1)
                printf("  %5.1f GB/s |", (double)bytes / n_copies / s * 1e-9);
            else
                printf(" %5.0f", 2.0 * (double)rows * (double)k * batch[i] / s * 1e-9);
        }
        printf("   pack %.1f GB/s\n", (double)bytes / (double)packing);
        fflush(stdout);
    }
    for (uint32_t i = 0; i < n_copies; i++) realm_cpu_unpack(copies[i].packed);
    uint64_t row_bytes = 0;
    (void)realm_type_row_bytes(info, k, &row_bytes);
    realm_pages_unmap(data, row_bytes * rows);
    realm_pages_unmap(x, 512 * k * sizeof *x);
    realm_pages_unmap(y, 512 * rows * sizeof *y);
    realm_pages_unmap(quantized, realm_linear_quantized_bytes(512, k));
}

int main(int argc, char **argv) {
    static const realm_type types[] = {REALM_TYPE_Q4_0, REALM_TYPE_Q4_1, REALM_TYPE_Q5_0, REALM_TYPE_Q5_1,
                                       REALM_TYPE_Q8_0, REALM_TYPE_Q4_K, REALM_TYPE_Q5_K, REALM_TYPE_Q6_K,
                                       REALM_TYPE_F16,  REALM_TYPE_BF16, REALM_TYPE_F32};
    static const uint64_t shapes[][2] = {{576, 1536}, {1536, 576}, {49152, 576}, {2048, 2048}, {2048, 5632}};
    realm_cpu_level level = realm_cpu_detect();
    if (argc > 2)
        for (int l = 0; l <= (int)realm_cpu_detect(); l++)
            if (!strcmp(argv[2], realm_cpu_level_name((realm_cpu_level)l))) level = (realm_cpu_level)l;
    realm_cpu_kernels *kernels = realm_calloc(1, sizeof *kernels);
    realm_team *team = NULL;
    realm_error err;
    if (!kernels ||
        realm_team_open(&team, argc > 1 ? (uint32_t)atoi(argv[1]) : 0, realm_linear_scratch_bytes(16384), &err)) {
        fprintf(stderr, "cannot open a team\n");
        return 1;
    }
    realm_cpu_kernels_init(kernels, level);
    printf("%u threads, %s, plain read %.1f GB/s\n", realm_team_size(team), realm_cpu_level_name(level),
           bandwidth(team));
    printf("type   rows x k       1 row        | GOPS for 2, 3, 4, 8, 16, 32, 512 rows\n");
    for (size_t t = 0; t < REALM_ARRAY_LEN(types); t++) {
        const realm_type_info *info = realm_type_get(types[t]);
        if (argc > 3 && strcmp(argv[3], "all") && realm_type_find(argv[3]) != info) continue;
        unsigned long long rows = 0, k = 0;
        if (argc > 4 && sscanf(argv[4], "%llux%llu", &rows, &k) == 2) {
            bench_shape(team, kernels, info, rows, k);
            continue;
        }
        for (size_t s = 0; s < REALM_ARRAY_LEN(shapes); s++)
            if (shapes[s][1] % info->block_len == 0) bench_shape(team, kernels, info, shapes[s][0], shapes[s][1]);
    }
    realm_team_close(team);
    realm_free(kernels);
    return 0;
}
