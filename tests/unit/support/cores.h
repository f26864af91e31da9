/* How many processors this process may use, as the compute team counts them: with fewer than threads nobody spins. */
#ifndef REALM_TEST_CORES_H
#define REALM_TEST_CORES_H

#include <sched.h>
#include <unistd.h>

static inline long usable_cores(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : sysconf(_SC_NPROCESSORS_ONLN);
}

#endif
