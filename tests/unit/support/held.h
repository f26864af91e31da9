/* What this process holds now: for tests that nothing stays behind. */
#ifndef TESTS_UNIT_SUPPORT_HELD_H
#define TESTS_UNIT_SUPPORT_HELD_H

#include <dirent.h>
#include <stdio.h>

typedef struct held {
    long rss_kib, mappings, descriptors, threads;
} held;

static held measure(void) {
    held h = {0};
    char line[512];
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f)) {
        sscanf(line, "VmRSS: %ld", &h.rss_kib);
        sscanf(line, "Threads: %ld", &h.threads);
    }
    if (f) fclose(f);
    f = fopen("/proc/self/maps", "r");
    while (f && fgets(line, sizeof line, f)) h.mappings++;
    if (f) fclose(f);
    DIR *d = opendir("/proc/self/fd");
    while (d && readdir(d)) h.descriptors++;
    if (d) closedir(d);
    return h;
}

#endif
