/* engine/fair.h - whose rows go into the next step, and what they cost. Internal; knows nothing of engines or models,
 * so that tests drive it with clocks and costs of their own. Engine's thread. */
#ifndef REALM_ENGINE_FAIR_H
#define REALM_ENGINE_FAIR_H

#include "base/base.h"

/* ---- what a step costs ------------------------------------------------------------------------------------------- */

typedef struct realm_work { /* of a step, or of a part of one */
    double rows;            /* tokens computed */
    double out;             /* of them, those whose logits are wanted */
    double ctx_one;         /* positions looked back on by sequences of one row, summed */
    double ctx_many;        /* the same by sequences of several rows */
} realm_work;

#define REALM_COST_TERMS 5u

typedef struct realm_cost_model {
    double prior[REALM_COST_TERMS];                 /* ns: of a step, and of one of each of realm_work */
    double factor[REALM_COST_TERMS];                /* what was learned, as a multiple of that */
    double cov[REALM_COST_TERMS][REALM_COST_TERMS]; /* how sure of it */
    uint64_t n;
    uint32_t n_off; /* times in a row that were not believed */
} realm_cost_model;

/* Starts from what is moved: the weights once in a step, a token's KV for each position looked back on. */
void realm_cost_init(realm_cost_model *m, double weight_bytes, double kv_token_bytes);
double realm_cost_fixed(const realm_cost_model *m);                      /* ns of a step beside its work */
double realm_cost_of(const realm_cost_model *m, const realm_work *work); /* ns of the work */
/* Variance of the predicted time of a step with this work, relative to it. */
double realm_cost_doubt(const realm_cost_model *m, const realm_work *work);
void realm_cost_learn(realm_cost_model *m, const realm_work *work, double ns);

/* ---- shares ------------------------------------------------------------------------------------------------------ */

typedef struct realm_want realm_want;

typedef struct realm_share {    /* an account's; zero at first */
    uint32_t weight;            /* > 0 */
    uint64_t tokens_per_second; /* 0: no limit */
    double served_ns;           /* what it has had, divided by its weight */
    double bucket;              /* tokens that it may still compute */
    uint64_t bucket_ns;         /* when it was filled last; 0: never */
    double sample_ns;           /* sampling a row of its, a running mean; 0: not known */
    double debt_ns;             /* its sampling has made steps longer than was promised to others by so much */
    uint64_t turn_ns;           /* when it was in a step last */
    uint64_t held_until_ns;     /* for that it misses turns until then; 0: it does not */
    bool prompt_first;
    uint64_t last_step, cursor; /* when it last wanted rows; `order` of the generation that had the last turn */
    /* of the step under way */
    realm_want *first[2], *last[2]; /* short ones, prompts */
    double alone_ns, pending_ns;    /* a step of its own; what it was granted, divided by its weight */
    realm_work alone;
    double sampling_ns;         /* expected of what it was granted */
    double used_ns, sampled_ns; /* by it: for computing, for sampling */
    uint32_t n_granted;
    bool active, done, left_out, limited; /* left_out: wanted more; limited: by tokens_per_second */
} realm_share;

struct realm_want { /* of one generation */
    realm_share *share;
    uint64_t order;  /* of admission */
    uint32_t n_rows; /* all that it could compute now */
    bool is_short;   /* its rows go together: a token that is decoded, a small forward pass */
    uint32_t n_past, n_out;
    uint32_t granted; /* by the plan */
    uint32_t used;    /* rows that were computed, and of them those that count against tokens_per_second */
    uint32_t charged;
    double sample_ns; /* that sampling them took, of the threads that did it together */
    realm_want *next;
};

typedef struct realm_fair {
    realm_cost_model cost;
    uint64_t step;
    double floor_ns;      /* where accounts that come back start */
    double most_ns;       /* of the step that was planned last; INFINITY: no promise is in its way */
    double weights;       /* of the accounts that wanted something in it */
    uint64_t wake_ns;     /* when a held account may go on; 0: none is held */
    double held_weights;  /* of the accounts that miss the step for their sampling */
    realm_share **active; /* (cap) */
    uint32_t n_active, cap;
} realm_fair;

REALM_WARN_UNUSED realm_status realm_fair_init(realm_fair *f, uint32_t max_accounts, double weight_bytes,
                                               double kv_token_bytes, realm_error *err);
void realm_fair_release(realm_fair *f);

/* Sets `granted` of each want, in order of admission; `chunk_rows` is the most prompt rows of a step. */
void realm_fair_plan(realm_fair *f, realm_want *wants, uint32_t n, uint32_t chunk_rows, uint64_t now_ns);
/* After the step: wants with `used`, `charged` and `sample_ns` set; what computing took and what sampling took, by the
 * clock; when that was. */
void realm_fair_charge(realm_fair *f, realm_want *wants, uint32_t n, double ns, double sampling_ns, uint64_t now_ns);

#endif
