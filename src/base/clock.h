/* base/clock.h - time. Deadlines and rates use the monotonic clock, so jumps of the wall clock change nothing. */
#ifndef REALM_BASE_CLOCK_H
#define REALM_BASE_CLOCK_H

#include <stdint.h>

#define REALM_NS_PER_S UINT64_C(1000000000)
#define REALM_NS_PER_MS UINT64_C(1000000)
#define REALM_NS_PER_US UINT64_C(1000)

uint64_t realm_clock_ns(void);        /* monotonic */
int64_t realm_clock_wall_s(void);     /* seconds since 1970 */
int64_t realm_clock_wall_ms(void);    /* milliseconds since 1970 */
uint64_t realm_clock_thread_ns(void); /* CPU time of the calling thread */

#endif
