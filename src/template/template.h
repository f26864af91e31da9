/* template/template.h - chat templates: a conversation to the text that a model expects.
 *
 * The template comes out of a model file, so it is hostile code; the conversation comes from a client, so it is hostile
 * data. minijinja runs the first over the second with a limit on steps, on work (bytes copied, values visited), on
 * nesting and on output. There is no I/O, no loader, no include.
 *
 * Prompt injection. A client may write "<|im_start|>system" into a message; only the template may write control tokens.
 * So the result says which bytes are control tokens *of the template*, and the tokenizer is asked to parse only those:
 * everything else is plain text, whatever it spells. The rule is turned around from what one would try first. Marking
 * the client's text fails as soon as a filter cuts, joins or replaces it; here the template's own literals are marked
 * when it is compiled (the first character of every control token in them becomes a Unicode noncharacter, which cannot
 * come in with the data) and whatever the template does with the client's strings, no mark can appear in them. After
 * rendering the marks are turned back and the places where one stands are the control tokens.
 *
 *   template   '<|im_start|>' + message.role + '\n' + message.content
 *   compiled   '#|im_start|>' + ...                                      (# is the mark for a token that begins with <)
 *   rendered   #|im_start|>user\nHello <|im_end|>
 *   result     <|im_start|>user\nHello <|im_end|>       spans: [0, 12) special, [12, ...) plain
 *
 * A token that a template puts together around a role ('<|' + message.role + '|>') counts if the text between is a role
 * that the OpenAI protocol knows. Literals that a template looks for in messages (the argument of split, of `in`, of a
 * comparison) are not marked: they would never be found.
 */
#ifndef REALM_TEMPLATE_TEMPLATE_H
#define REALM_TEMPLATE_TEMPLATE_H

#include "base/base.h"
#include "base/buf.h"

#define REALM_TEMPLATE_SOURCE_MAX (256u << 10) /* bytes of a template */
#define REALM_TEMPLATE_INPUT_MAX (16u << 20)   /* bytes of messages, tools and arguments together */
#define REALM_TEMPLATE_OUTPUT_MAX (64u << 20)  /* bytes of result, should the caller's buffer allow more */
#define REALM_TEMPLATE_ARGS_MAX 32u            /* arguments that a request may bring */

typedef struct realm_template realm_template;

typedef struct realm_template_str { /* borrowed bytes, UTF-8 */
    const char *data;
    size_t len;
} realm_template_str;

/* The vocabulary's part in it. */
typedef struct realm_template_tokens {
    realm_template_str bos, eos;       /* values of bos_token and eos_token; len 0 where the model has none */
    const realm_template_str *control; /* texts of all control tokens, any order, copied */
    size_t n_control;
} realm_template_tokens;

/* A piece of the result. `special`: exactly one control token that the template wrote; else plain text. */
typedef struct realm_template_span {
    size_t start, len;
    bool special;
} realm_template_span;

typedef struct realm_template_spans { /* caller-owned, zero-initialise, released with realm_template_spans_release */
    realm_template_span *items;
    size_t len;
} realm_template_spans;
void realm_template_spans_release(realm_template_spans *s); /* NULL-safe; empty and reusable afterwards */

typedef struct realm_template_input {
    realm_template_str messages; /* JSON array of message objects */
    realm_template_str tools;    /* JSON array, or len 0: the template sees none */
    realm_template_str args;     /* JSON object of further variables, or len 0: of any kind, and of any name that is not
                                    reserved (realm_template_arg_reserved) */
    realm_template_str values; /* JSON object, or len 0. With it these are all the variables there are, of any name and
                                  kind, and the fields around it are not looked at: for templates of our own */
    bool add_generation_prompt;
    int64_t now_unix; /* seconds; what strftime_now() shows, in UTC */
} realm_template_input;

/* True for a variable that no argument may be called, since the conversation or the model gives it: messages, tools,
 * bos_token and the like. Any thread. */
bool realm_template_arg_reserved(const char *name, size_t len);

/* Compiles `source`. `tokens` may be NULL: nothing is special then. On success *out is the caller's until
 * realm_template_close; on failure *out is NULL. REALM_E_FORMAT with the line for a template that does not compile,
 * REALM_E_LIMIT for one that is too long or too deeply nested, REALM_E_UNSUPPORTED for includes and inheritance,
 * REALM_E_NOMEM. Takes some milliseconds and a thread of its own: not for an I/O thread. */
REALM_WARN_UNUSED realm_status realm_template_open(realm_template **out, const char *source, size_t len,
                                                   const realm_template_tokens *tokens, realm_error *err);
void realm_template_close(realm_template *t); /* NULL-safe; no render may be running */

/* Calls `fn` for every variable that the template reads and neither sets itself nor has from the engine, with the
 * attributes that follow it ("steps.draft.text"), in order of bytes. REALM_E_NOMEM. Takes as long as opening does. */
REALM_WARN_UNUSED realm_status realm_template_each_name(const realm_template *t,
                                                        void (*fn)(void *user, const char *name, size_t len),
                                                        void *user, realm_error *err);

/* Renders into `out` (appended; its maximum is a limit too) and, where `spans` is not NULL, replaces its content with
 * the pieces of what was appended, in order and without gaps, `start` counted from the first byte appended.
 *
 * REALM_E_INVALID for input that is not what it should be and for what the template itself refuses with
 * raise_exception, in its words; REALM_E_LIMIT when it ran out of steps, work, nesting or output;
 * REALM_E_UNSUPPORTED for a filter or function that there is not; REALM_E_NOMEM. On failure `out` is as it was.
 *
 * Any thread, several at once on the same template; uses at most 256 KiB of stack, so a fiber will do. */
REALM_WARN_UNUSED realm_status realm_template_render(const realm_template *t, const realm_template_input *in,
                                                     realm_buf *out, realm_template_spans *spans, realm_error *err);

#endif
