/* base/log.h - one line per event: time, level, where, message.
 *
 * Lines go to stderr, or to a sink that the embedding program sets. Message text of tenants (prompts, completions,
 * keys) is never passed to these functions. Any thread; a line is written with one call and never interleaves.
 */
#ifndef REALM_BASE_LOG_H
#define REALM_BASE_LOG_H

#include "base/base.h"

typedef enum realm_log_level { REALM_LOG_DEBUG, REALM_LOG_INFO, REALM_LOG_WARN, REALM_LOG_ERROR } realm_log_level;

typedef void (*realm_log_sink)(void *user, realm_log_level level, const char *line, size_t len);

/* Sets the least level that is written (default INFO) and the sink (NULL: stderr). Call before threads start. */
void realm_log_configure(realm_log_level least, realm_log_sink sink, void *user);
bool realm_log_enabled(realm_log_level level);
void realm_log(realm_log_level level, const char *where, const char *fmt, ...) REALM_PRINTF(3, 4);

#define realm_log_debug(where, ...) realm_log(REALM_LOG_DEBUG, where, __VA_ARGS__)
#define realm_log_info(where, ...) realm_log(REALM_LOG_INFO, where, __VA_ARGS__)
#define realm_log_warn(where, ...) realm_log(REALM_LOG_WARN, where, __VA_ARGS__)
#define realm_log_error(where, ...) realm_log(REALM_LOG_ERROR, where, __VA_ARGS__)

#endif
