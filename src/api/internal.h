/* api/internal.h - one call per exchange, and what the files of this folder share.
 *
 *   api.c         open, close, handler, routes, keys, the call's life
 *   queue.c       calls that wait for a worker
 *   party.c       what the calls of a tenant hold together
 *   error.c       the error object and the statuses
 *   params.c      fields of a generation request, checked
 *   sampling.c    those that say how a token is drawn
 *   format.c      those that say what an answer must look like
 *   prompt.c      messages and prompts
 *   generate.c    runs of a call: start, poll, end
 *   reply.c       what the answers of both endpoints have in common
 *   chat.c        a choice of /v1/chat/completions
 *   completion.c  a choice of /v1/completions
 *   logprobs.c    log-probabilities in both shapes
 *   text.c        tokenize, detokenize, apply-template
 *   info.c        health, models, usage
 *   metrics.c     what is counted of calls, and all that is shown
 *
 * Who owns a call:
 *
 *      I/O thread --submit--> worker --hand back--> I/O thread (replies, or polls the runs until they end)
 *          |                     | a schema is compiled: seconds --> thread of its own --hand back--> I/O thread
 *          |                     |
 *          +-- exchange closed --+-> whoever holds it then frees it
 *
 * `mu` guards x, gone and phase alone; on_ready callbacks of runs take it to wake the exchange.
 */
#ifndef REALM_API_INTERNAL_H
#define REALM_API_INTERNAL_H

#include <stdatomic.h>

#include "api/api.h"
#include "base/rota.h"
#include "base/thread.h"
#include "data/data.h"

#define API_REPLY_MAX ((size_t)256 << 20)
#define API_CHOICES_MAX 128u /* runs of one request */
#define API_PARALLEL_MAX 32u /* of them at a time */
#define API_TOKENS_MAX ((size_t)16 << 20)
#define API_WORKERS_MAX REALM_ROTA_PLACES_MAX
#define API_LENT_MAX 64u /* calls whose schemas are being compiled; past it 503 */
#define API_ID_MAX 48u
#define API_LATENCIES 11u /* bounds of a histogram of times */
#define API_JSON "application/json"

typedef enum api_route {
    ROUTE_NONE, /* refused before it was known */
    ROUTE_CHAT,
    ROUTE_COMPLETION,
    ROUTE_TOKENIZE,
    ROUTE_DETOKENIZE,
    ROUTE_APPLY_TEMPLATE,
    ROUTE_MODELS,
    ROUTE_MODEL,
    ROUTE_USAGE,
    ROUTE_HEALTH,
    ROUTE_READY,
    ROUTE_METRICS,
    ROUTE_ADMIN_USAGE,
    ROUTE_ADMIN_MODELS,
    N_ROUTES
} api_route;
const char *api_route_name(api_route r);

/* ---- errors ---- */

typedef struct api_error {
    unsigned status;                 /* 0: none */
    const char *code;                /* static, or NULL */
    char param[REALM_JSON_PATH_MAX]; /* "": null */
    char message[REALM_ERROR_TEXT_MAX];
    uint32_t retry_after_ms;           /* 0: no field */
    bool no_retry;                     /* x-should-retry: false */
    char detail[REALM_ERROR_TEXT_MAX]; /* for the log alone */
} api_error;

/* Fills `e` and returns false, so that checks can end with it. `param` may be NULL. */
bool api_error_set(api_error *e, unsigned status, const char *code, const char *param, const char *fmt, ...)
    REALM_PRINTF(5, 6);
/* From a failed accessor: 400, naming the value's path. */
bool api_error_value(api_error *e, const realm_json *v, const realm_error *err);
/* 404 for a model that is not served, naming it. */
bool api_error_model(api_error *e, const char *id, size_t len);
/* 400 about a value, in words of the caller. */
bool api_error_field(api_error *e, const realm_json *v, const char *code, const char *fmt, ...) REALM_PRINTF(4, 5);
/* What runs and requests failed with. */
bool api_error_status(api_error *e, realm_status s, const realm_error *err);
/* What failed in the server itself, its store or its device: 503 where trying again may help, else 500. The client is
 * told no more than that, the log the rest. */
bool api_error_server(api_error *e, realm_status s, const realm_error *err);
/* When it would be admitted, where it was not. */
void api_error_rate(api_error *e, realm_status s, const realm_rate *rate);
/* A buffer that a request did not fit: 413, or 503 without memory. */
bool api_error_buf(api_error *e, realm_status s);
/* {"error":{"message","type","param","code"}} */
void api_error_write(const api_error *e, realm_buf *out);

/* Runs an accessor of data.h (its error argument is &err_) in a function that returns false with `e` filled. */
#define API_CHECK(call, value)                                           \
    do {                                                                 \
        realm_error err_ = {0};                                          \
        if ((call) != REALM_OK) return api_error_value(e, value, &err_); \
    } while (0)

/* A body as a tree; 400 where it is no JSON. */
bool api_read_body(const char *body, size_t len, realm_json_doc **out, api_error *e);
/* A member that may be absent or null: *out then keeps what it held. False with `e` filled. `set` may be NULL. */
bool api_opt_bool(const realm_json *root, const char *name, bool *out, api_error *e);
bool api_opt_int(const realm_json *root, const char *name, int64_t least, int64_t most, int64_t *out, bool *set,
                 api_error *e);
bool api_opt_float(const realm_json *root, const char *name, double least, double most, float *out, api_error *e);

/* One of these strings. */
bool api_one_of(const realm_json *v, const char *const *names, size_t n, api_error *e);
#define API_ONE_OF(v, ...) \
    api_one_of(v, (const char *const[]){__VA_ARGS__}, sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *), e)

/* ---- a generation request, checked ---- */

typedef struct gen_prompt {
    realm_prompt_kind kind;
    const char *text; /* MESSAGES: JSON; TEXT */
    size_t len;
    const realm_token *tokens;
    size_t n_tokens;
    realm_json value; /* of "prompt" (or its element) in the document */
} gen_prompt;

typedef struct gen_request {
    realm_json_doc *doc;
    realm_json root, prompt_root; /* prompt_root: the array that elements in `prompts` hang on */
    const char *model;
    realm_served *served; /* held */
    realm_engine *engine; /* its */
    bool chat, stream, include_usage, echo, logprobs, parse_special, has_seed;
    uint32_t n, n_runs, top_logprobs; /* of each prompt: answers, and runs of which they are the best */
    uint64_t seed;
    realm_generation_params gen;
    realm_logit_bias *bias;
    realm_token *breakers;                  /* of DRY */
    bool constrained, has_schema;           /* by a schema, or to any object */
    realm_json format, json_schema, schema; /* where that stands: each hangs on the one before, or on root */
    realm_grammar_state *grammar;           /* NULL: any text, or not compiled yet */
    realm_gguf_str stop[4];
    size_t n_stop;
    realm_buf messages;      /* normalised, JSON */
    realm_buf template_args; /* JSON object, or empty */
    gen_prompt *prompts;
    size_t n_prompts;
    realm_token *tokens; /* of all token prompts */
} gen_request;

void gen_request_init(gen_request *q, bool chat);
void gen_request_release(gen_request *q);
/* Parses and checks a body. False with `e` filled. */
bool gen_request_read(gen_request *q, realm_runtime *rt, const char *body, size_t len, api_error *e);
/* Compiles what a constrained answer is kept to: takes up to seconds. False with `e` filled. */
bool gen_request_constrain(gen_request *q, realm_tenant *t, api_error *e);
/* A run could not go on in it: 400, naming the field. */
void gen_grammar_error(const gen_request *q, const realm_error *err, api_error *e);
/* sampling.c, format.c, prompt.c: called by it. */
bool gen_read_sampling(gen_request *q, api_error *e);
bool gen_read_format(gen_request *q, api_error *e);
bool gen_read_messages(gen_request *q, api_error *e);
bool gen_read_prompts(gen_request *q, api_error *e);
/* A string, or parts of type text, as one JSON string into `w`; NULL: checked alone. */
bool api_write_content(const realm_json *content, realm_json_writer *w, api_error *e);
/* Any "messages" array as its normalised JSON, appended to `out`. */
bool api_write_messages(const realm_json *messages, realm_buf *out, api_error *e);
/* Member "chat_template_kwargs" of a request, checked, as JSON appended to `out`; nothing where it is absent or null.
 */
bool api_write_template_args(const realm_json *root, realm_buf *out, api_error *e);
/* The document that the program of one run reads. */
realm_status gen_write_input(const gen_request *q, const gen_prompt *p, realm_buf *out);
/* An integer token id below n_vocab. */
bool api_read_token(const realm_json *v, size_t n_vocab, realm_token *out, api_error *e);

/* ---- a call ---- */

typedef enum choice_state { CHOICE_PENDING, CHOICE_RUNNING, CHOICE_DONE } choice_state;

typedef struct gen_choice {
    choice_state state;
    realm_run *run;
    const gen_prompt *prompt;
    uint32_t index;
    bool opened; /* its first chunk was sent */
    bool any;    /* an event came */
    bool beside; /* others were running beside it at some time */
    realm_finish finish;
    uint32_t prompt_tokens, cached_tokens, completion_tokens;
    double logprob_sum; /* of its tokens, with best_of */
    uint32_t n_scored;
    realm_buf text;      /* not streamed: the answer so far */
    realm_buf logprobs;  /* not streamed: entries, comma-separated; legacy: tokens */
    realm_buf legacy[3]; /* token_logprobs, top_logprobs, text_offset */
    uint64_t offset;     /* legacy: characters before the next token */
} gen_choice;

typedef enum call_phase { CALL_NEW, CALL_WORKING, CALL_REPLY, CALL_RUNNING, CALL_ENDED } call_phase;

typedef struct api_call {
    realm_rota_item turn; /* first: queue.c */
    realm_api *api;
    realm_mutex mu;
    realm_exchange *x; /* NULL once closed */
    bool gone;
    call_phase phase;
    api_route route;
    char id[API_ID_MAX]; /* x-request-id */
    uint64_t start_ns;
    realm_tenant *tenant;
    struct api_party *party; /* the tenant's; NULL without one */
    bool by_admin;           /* with an admin key */
    char *body;
    size_t body_len;
    uint64_t held; /* counted in the api's and the party's held_bytes */

    api_error error; /* status 0: `reply` is the answer */
    realm_buf reply;
    bool has_rate;
    realm_rate rate;

    /* generation */
    gen_request gen;
    realm_request *request;
    gen_choice *choices;
    uint32_t n_choices, n_done, n_running, parallel;
    realm_event_batch batch;
    int64_t created_s;
    char gen_id[API_ID_MAX]; /* "chatcmpl-..." */
    char *model_json;        /* the model's id as a JSON string */
    realm_buf head;          /* what every chunk of the stream begins with */
    realm_buf piece;         /* one chunk */
    bool streaming;          /* the answer has begun */
    bool first_token;
} api_call;

/* ---- party.c ---- */

#define API_PARTY_BUCKETS 256u

typedef struct api_party { /* there while its tenant has calls */
    struct api_party *next;
    const realm_tenant *tenant;
    uint32_t n_calls;           /* api.parties_mu */
    uint32_t n_lent;            /* api.lent_mu: threads that compile schemas for it */
    realm_http_party exchanges; /* of calls whose exchange is open */
    _Atomic uint64_t held_bytes;
} api_party;

/* The call joins its tenant's, which it holds. False, with the error filled: it has as many open as would be left for
 * others, or there is no memory. I/O thread, in on_head. */
bool party_join(api_call *c);
void party_leave(api_call *c); /* with all that it holds */
/* The call keeps `bytes` more, of its body or its answer, until it is freed: they count for its tenant. False, with the
 * error filled and nothing counted, when that is more than would be left for others; the first 64 KiB always fit. */
bool party_hold(api_call *c, uint64_t bytes);
/* A thread to compile the call's schema may be started, and counts in api.n_lent until that is taken back; it counts
 * for the tenant until party_give_thread. False with the error filled. */
bool party_take_thread(api_call *c);
void party_give_thread(api_call *c);

/* ---- queue.c ---- */

typedef struct call_queue {
    realm_mutex mu;
    realm_cond moved;
    bool shut;
    uint32_t cap; /* that wait */
    realm_rota turns;
} call_queue;

void call_queue_init(call_queue *q, uint32_t n_workers, uint32_t cap);
void call_queue_release(call_queue *q);
/* REALM_E_AGAIN: too many wait, of all or of this tenant; REALM_E_CLOSED. */
REALM_WARN_UNUSED realm_status call_queue_push(call_queue *q, api_call *c);
/* Waits for a call whose turn it is; NULL once the queue is shut and empty. call_queue_done follows. */
api_call *call_queue_pop_wait(call_queue *q);
/* The worker has no call of this tenant any more, which may be gone. */
void call_queue_done(call_queue *q, const realm_tenant *t);
void call_queue_shut(call_queue *q);
uint32_t call_queue_length(call_queue *q); /* that wait now */

struct realm_api {
    realm_runtime *rt;
    _Atomic(const realm_server *) server;
    _Atomic int state; /* realm_api_state */
    call_queue queue;
    realm_mutex lent_mu;
    realm_cond returned;
    uint32_t n_lent; /* threads that compile schemas; lent_mu */
    uint64_t held_most;
    _Atomic uint64_t held_bytes; /* by calls that have not ended */
    realm_mutex parties_mu;
    api_party *parties[API_PARTY_BUCKETS]; /* by tenant */
    pthread_t workers[API_WORKERS_MAX];
    unsigned n_workers;
    _Atomic uint64_t answers[N_ROUTES][6]; /* by first digit of the status */
    _Atomic uint64_t seconds_ns[N_ROUTES];
    _Atomic uint64_t first_token[API_LATENCIES + 1], first_token_ns; /* histogram, sum */
};

/* api.c */
void api_random_id(char *out, size_t cap, const char *prefix, size_t n_bytes);
uint64_t api_random_u64(void);
void api_put_fields(api_call *c); /* x-request-id and x-ratelimit-* */
/* I/O thread: answers with call->error or call->reply. */
void api_answer(api_call *c);
void api_answer_error(api_call *c);
void api_log_error(const api_call *c); /* what the client is not told of it, under the request's id */

/* generate.c */
bool gen_read(api_call *c);  /* worker: false with the error filled */
void gen_start(api_call *c); /* then, where the answer is constrained off the workers: fills error, or leaves runs */
void gen_wake(api_call *c);  /* I/O thread */
void gen_release(api_call *c);

/* chat.c, completion.c: one event of a choice; the end of it when it streams; all of it but how it ended. */
void chat_event(api_call *c, gen_choice *ch, const realm_event *e);
void chat_end(api_call *c, gen_choice *ch);
void chat_write_choice(const api_call *c, const gen_choice *ch, realm_buf *b);
void completion_begin(api_call *c, gen_choice *ch);
void completion_event(api_call *c, gen_choice *ch, const realm_event *e);
void completion_end(api_call *c, gen_choice *ch);
void completion_write_choice(const api_call *c, const gen_choice *ch, realm_buf *b);

/* reply.c: into call->reply, or call->error. */
void reply_whole(api_call *c);
/* A chunk in call->piece, up to its choice; from behind the choice's fields on (`finish` NULL: it goes on); what has
 * been gathered there as one write. */
void reply_chunk_begin(api_call *c);
void reply_chunk_end(api_call *c, const char *finish);
void reply_send(api_call *c);
/* What follows the last choice. */
void reply_stream_end(api_call *c);
/* ,"finish_reason":F} */
void reply_finish_reason(realm_buf *b, const char *finish);
const char *reply_finish_name(realm_finish f); /* NULL for what is no end of an answer */

/* logprobs.c */
void logprobs_chat_entry(const api_call *c, const realm_event *e, realm_buf *out);
/* Appends to four comma-separated lists. `offset` is moved past what the answer's text shows of the token; `control`:
 * it shows control tokens here. */
void logprobs_legacy_entry(const api_call *c, const realm_event *e, bool control, realm_buf *tokens, realm_buf *values,
                           realm_buf *tops, realm_buf *offsets, uint64_t *offset);

/* text.c, info.c: fill call->reply or call->error; those of text.c run on a worker */
void text_tokenize(api_call *c);
void text_detokenize(api_call *c);
void text_apply_template(api_call *c);
void info_models(api_call *c);
void info_model(api_call *c, const char *id, size_t len);
void info_usage(api_call *c, bool all); /* worker */
void info_health(api_call *c);
void info_ready(api_call *c);

/* metrics.c; once for each call, when it is answered and when its first token is there */
void metrics_answered(api_call *c, unsigned status);
void metrics_first_token(api_call *c);
void metrics_write(api_call *c); /* worker */

#endif
