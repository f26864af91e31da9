/* tools/abi-gen/abi-gen.h - what is known of the host's interface, and how it is written in each language. */
#ifndef TOOLS_ABI_GEN_H
#define TOOLS_ABI_GEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { NAME_MAX_ = 64, FIELDS_MAX = 32, PARAMS_MAX = 12, COMMENT_MAX = 2048, LINE_WIDTH = 120 };

/* ---- read.c: the tables that are compiled in, and the header that is read -------------------------------------- */

typedef enum lang { C, GO, RUST, AS, N_LANGS } lang;

typedef struct call {
    const char *group, *name, *letters, *declaration, *text;
} call;

typedef struct group {
    const char *name, *title;
} group;

typedef struct code {
    const char *name, *text;
    int value;
} code;

typedef struct scalar {      /* and how each language writes it */
    const char *in[N_LANGS]; /* NULL: not in structures */
    unsigned size;           /* 0: as wide as a pointer, for parameters alone */
    char letter;
} scalar;

typedef struct field {
    const scalar *type;
    char name[NAME_MAX_];
    unsigned array, offset; /* array 0: none */
    char comment[COMMENT_MAX];
} field;

typedef enum kind { COMMENT, CONSTANT, STRUCT } kind;

typedef struct item { /* of the header, in its order */
    kind kind;
    char name[NAME_MAX_]; /* as in C */
    char comment[COMMENT_MAX];
    uint64_t value; /* CONSTANT */
    bool is_unsigned;
    field fields[FIELDS_MAX]; /* STRUCT */
    unsigned n_fields, size;
} item;

typedef struct param {
    char name[NAME_MAX_], type[NAME_MAX_]; /* type: a scalar's or a structure's name */
    bool pointer, is_const;
    const scalar *scalar; /* NULL: a structure */
    char letter;
} param;

extern const call CALLS[];
extern const group GROUPS[];
extern const code CODES[];
extern const unsigned N_CALLS, N_GROUPS, N_CODES;
extern item items[]; /* once read_header has read them */
extern unsigned n_items;

void read_header(void);
/* The parameters of a call, whose letters must be those of the table; PARAMS_MAX at most. */
unsigned params_of(const call *c, param *out);
/* The group of this name has calls. */
bool has_calls(const char *name);

/* To stderr, and the end. */
_Noreturn void die(const char *fmt, ...);
/* The whole file with a NUL behind it, the caller's; NULL when there is none. */
char *read_file(const char *path);

/* ---- words.c: text, and names as a language writes them -------------------------------------------------------- */

typedef struct writer {
    char *data;
    size_t len, cap;
} writer;

void put(writer *o, const char *fmt, ...);
/* Text in lines that start with `lead`. */
void put_wrapped(writer *o, const char *lead, const char *text);
void put_c_comment(writer *o, const char *text);
/* A comment that names constants as C does, in the language's own names. */
void put_comment(writer *o, lang l, const char *lead, const char *text);
void put_title(writer *o, lang l, const char *title);

/* What these return lasts for a few calls more. */
const char *bare(const char *name);         /* realm_guest_event -> guest_event */
const char *camel(const char *name);        /* max_tokens, MAX_TOKENS -> MaxTokens; initialisms as Go writes them */
const char *lower_camel(const char *name);  /* maxTokens */
const char *safe(lang l, const char *name); /* a name that the language keeps for itself gets a line behind it */

#define MADE "made by tools/abi-gen (make abi) from src/tenant/host/abi.h and include/realm/abi.h; do not edit"

/* ---- sdk.c, doc.c: the files ----------------------------------------------------------------------------------- */

void put_c(writer *o);
void put_go(writer *o);
void put_rust(writer *o);
void put_as(writer *o);
void put_doc(writer *o);     /* docs/abi.md, what stands outside its markers as it is */
void put_layouts(writer *o); /* assertions for the C compiler */

#endif
