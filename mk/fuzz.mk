# Fuzzers: tests/fuzz/fuzz_<name>.c with LLVMFuzzerTestOneInput becomes `make fuzz-<name> SECONDS=60`, built with clang,
# the address and the undefined-behaviour sanitizer.
#
# FUZZ_LINK_<name> lists the folders of src/ that are built in; without it the folder <name> and what it may include
# (LINK_<name>); FUZZ_PLAIN_<name> lists folders whose ordinary objects are linked besides. FUZZ_LIBS_<name> are further
# libraries, FUZZ_SEEDS_<name> folders of seed inputs (tests/data/<name> where there is one). What a run finds is kept in $(BUILD)/fuzz/corpus/<name>; an input that fails is left in
# $(BUILD)/fuzz as <name>-crash-..., and the command ends with an error.

FUZZ_LINK_http := $(LINK_net)
FUZZ_LINK_json := $(LINK_data)
FUZZ_LIBS_template = $(DEPS_LIB)
FUZZ_LIBS_grammar = $(DEPS_INC) $(DEPS_LIB)
FUZZ_SEEDS_grammar := tests/data/grammar
FUZZ_LINK_pipeline := base data template pipeline
FUZZ_PLAIN_pipeline := $(filter-out $(FUZZ_LINK_pipeline),$(LINK_tenant))
FUZZ_LIBS_pipeline = $(DEPS_INC) $(DEPS_LIB)
FUZZ_SEEDS_pipeline := examples/pipelines
FUZZ_LIBS_sandbox = $(DEPS_INC) $(DEPS_LIB)
FUZZ_SEEDS_sandbox := $(BUILD)/wasm/test

FUZZ_NAMES  := $(sort $(patsubst tests/fuzz/fuzz_%.c,%,$(wildcard tests/fuzz/fuzz_*.c)))
FUZZ_FLAGS   = -O1 -g -fno-omit-frame-pointer -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all
SECONDS     ?= 60

fuzz_link  = $(or $(FUZZ_LINK_$(1)),$(LINK_$(1)))
fuzz_srcs  = $(foreach f,$(call fuzz_link,$(1)),$(call srcs_of,$(f)))
fuzz_heads = $(foreach f,$(call fuzz_link,$(1)),$(shell find src/$(f) -name '*.h')) $(wildcard tests/unit/$(1)/*.h)
fuzz_seeds = $(or $(FUZZ_SEEDS_$(1)),$(wildcard tests/data/$(1)))

.PHONY: fuzz $(addprefix fuzz-,$(FUZZ_NAMES))
# Every fuzzer in turn, SECONDS each.
fuzz: $(addprefix fuzz-,$(FUZZ_NAMES))

.SECONDEXPANSION:
$(BUILD)/fuzz/fuzz_%: tests/fuzz/fuzz_%.c $$(call fuzz_srcs,$$*) $$(call fuzz_heads,$$*) \
                       $$(foreach f,$$(FUZZ_PLAIN_$$*),$$(call objs_of,$$f))
	@mkdir -p $(@D)
	$(CLANG) $(filter-out -Wmissing-prototypes -MMD -MP,$(ALL_CFLAGS)) -Itests/unit $(FUZZ_FLAGS) -o $@ $(filter %.c %.o,$^) \
	    $(LIBS) $(FUZZ_LIBS_$*) $(SYSLIBS)

$(addprefix fuzz-,$(FUZZ_NAMES)): fuzz-%: $(BUILD)/fuzz/fuzz_%
	@mkdir -p $(BUILD)/fuzz/corpus/$*
	$< -max_total_time=$(SECONDS) -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
	    -artifact_prefix=$(BUILD)/fuzz/$*- $(BUILD)/fuzz/corpus/$* $(call fuzz_seeds,$*)

fuzz-sandbox: | $(WAT_WASM)

# Random modules as programs of a runtime with every import; `make test` runs a few hundred.
MODULES ?= 10000
SEED    ?= 1
.PHONY: fuzz-modules
fuzz-modules: $(BUILD)/unit/tenant/test_modules
	REALM_MODULES=$(MODULES) REALM_SEED=$(SEED) $<
