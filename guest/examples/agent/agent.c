/* agent: a loop in which the model asks for a tool, gets what the tool says, and goes on until it answers.
 *
 * The protocol is three kinds of lines, shown to the model by example: `Action: calc(7*6)`, `Result: 42`, `Answer:
 * ...`. The model writes one line at a time (a stop string ends it); an action is carried out here, in the program, and
 * its result put behind it. The client sees the whole trace as it grows. A model of this size copies the manner of the
 * examples; what it can never get wrong is the arithmetic, for that is not its work.
 */
#include "realm_guest.h"
#include "realm_text.h"

enum { STEPS_MAX = 6 };

static const char EXAMPLES[] =
    "Question: 3 pens at 4 coins each, paid with 20 coins. What is the change?\n"
    "Action: calc(3*4)\nResult: 12\nAction: calc(20-12)\nResult: 8\nAnswer: 8 coins\n\n"
    "Question: 5 cups at 9 coins each, paid with 100 coins. What is the change?\n"
    "Action: calc(5*9)\nResult: 45\nAction: calc(100-45)\nResult: 55\nAnswer: 55 coins\n\n"
    "Question: 2 books at 31 coins each, paid with 70 coins. What is the change?\n"
    "Action: calc(2*31)\nResult: 62\nAction: calc(70-62)\nResult: 8\nAnswer: 8 coins\n\n"
    "Question: 8 eggs at 2 coins each, paid with 30 coins. What is the change?\n"
    "Action: calc(8*2)\nResult: 16\nAction: calc(30-16)\nResult: 14\nAnswer: 14 coins\n\n"
    "Question: 11 chairs at 13 coins each, paid with 200 coins. What is the change?\n"
    "Action: calc(11*13)\nResult: 143\nAction: calc(200-143)\nResult: 57\nAnswer: 57 coins\n\n"
    "Question: ";

static char transcript_bytes[16384], room[16384], line[512];
static realm_text transcript = REALM_TEXT_IN(transcript_bytes);

/* ---- the tool: sums and products of whole numbers ---- */

static const char *at, *end;

static void skip_space(void) {
    while (at < end && *at == ' ') at++;
}

static bool number(int32_t *out) {
    skip_space();
    bool minus = at < end && *at == '-';
    if (minus) at++;
    if (at >= end || *at < '0' || *at > '9') return false;
    int32_t n = 0;
    for (; at < end && *at >= '0' && *at <= '9'; at++)
        if (__builtin_mul_overflow(n, 10, &n) || __builtin_add_overflow(n, *at - '0', &n)) return false;
    *out = minus ? -n : n;
    return true;
}

static bool product(int32_t *out) {
    if (!number(out)) return false;
    for (skip_space(); at < end && (*at == '*' || *at == '/'); skip_space()) {
        char op = *at++;
        int32_t b;
        if (!number(&b)) return false;
        if (op == '*' ? __builtin_mul_overflow(*out, b, out) : b == 0 || (*out == INT32_MIN && b == -1)) return false;
        if (op == '/') *out /= b;
    }
    return true;
}

static bool sum(int32_t *out) {
    if (!product(out)) return false;
    for (skip_space(); at < end && (*at == '+' || *at == '-'); skip_space()) {
        char op = *at++;
        int32_t b;
        if (!product(&b)) return false;
        if (op == '+' ? __builtin_add_overflow(*out, b, out) : __builtin_sub_overflow(*out, b, out)) return false;
    }
    return true;
}

/* The result of an action, or why there is none, as the model will read it. */
static void run_action(const realm_text *action, realm_text *result) {
    static const char CALC[] = "calc(";
    at = action->at;
    end = action->at + action->len;
    size_t i = 0;
    while (CALC[i] && at < end && *at == CALC[i]) i++, at++;
    int32_t value;
    if (CALC[i])
        realm_text_puts(result, "there is no such tool");
    else if (!sum(&value) || at >= end || *at != ')')
        realm_text_puts(result, "that cannot be computed");
    else
        realm_text_int(result, value);
}

/* ---- the loop ---- */

/* Adds to the transcript, and shows the client. */
static int32_t say(const realm_text *t) {
    realm_text_add(&transcript, t->at, t->len);
    return transcript.cut ? REALM_E_RANGE : realm_text_emit(t);
}

/* The model's next line, without its end, behind what `t` holds. */
static int32_t next_line(realm_text *t) {
    realm_bytes stop = {.ptr = (uintptr_t)"\n", .len = 1};
    realm_generate_options options = {
        .size = sizeof options,
        .set = REALM_SET_MAX_TOKENS | REALM_SET_TEMPERATURE | REALM_SET_STOP,
        .max_tokens = 48, /* and temperature 0 */
        .stop = (uintptr_t)&stop,
        .n_stop = 1,
    };
    int32_t n = realm_host_generate(0, transcript.at, transcript.len, &options, t->at + t->len, t->max - t->len);
    if (n < 0) return n;
    t->len += (size_t)n;
    return 0;
}

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    realm_text_puts(&transcript, EXAMPLES);
    int32_t status = realm_text_question(&transcript, room, sizeof room);
    if (status < 0) return status;
    realm_text_puts(&transcript, "\n");
    for (int step = 0; step < STEPS_MAX; step++) {
        realm_text said = REALM_TEXT_IN(line);
        if ((status = next_line(&said)) < 0) return status;
        bool action = realm_text_find(&said, "Action: ", 0) == 0;
        realm_text what = {.at = said.at + 8, .len = said.len - (action ? 8 : said.len)};
        if (action) {
            static char result_bytes[128];
            realm_text result = REALM_TEXT_IN(result_bytes);
            run_action(&what, &result);
            realm_text_puts(&said, "\nResult: ");
            realm_text_add(&said, result.at, result.len);
            realm_text_puts(&said, "\n");
        }
        if ((status = say(&said)) < 0 || !action) return status;
    }
    return realm_emit(REALM_LITERAL("(no answer after six actions)"));
}
