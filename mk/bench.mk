# Benchmarks: programs of bench/, each printing its figures beside the machine's own limits. None is a timed test.
.PHONY: bench bench-linear bench-kernels bench-server

# What a reader of docs/performance.md wants to repeat: both test models, the sandbox, the whole server.
bench: setup-test all bench-tenants bench-server
	@for m in smollm2-135m-instruct-q4_1 gemma-3-270m-q4_k_m; do \
	    echo "$$m"; \
	    for a in "--prompt 512" "--gen 128" "--gen 64 --depth 2048" "--batch 4 --prompt 64 --gen 32" \
	             "--batch 8 --prompt 64 --gen 32" "--batch 32 --prompt 64 --gen 32"; do \
	        $(BUILD)/realm bench --model $(CACHE)/models/$$m.gguf $$a; \
	    done; \
	done

bench-server: all $(BUILD)/wasm/test/spin.wasm
	python3 bench/server.py $(BUILD) $(CACHE)/models/smollm2-135m-instruct-q4_1.gguf

bench-linear: $(BUILD)/bench/linear
	$(BUILD)/bench/linear
bench-kernels: $(BUILD)/bench/kernels
	$(BUILD)/bench/kernels

$(BUILD)/bench/linear $(BUILD)/bench/kernels: $(BUILD)/bench/%: bench/%.c $(foreach f,$(LINK_compute),$(call objs_of,$(f)))
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $(filter %.c %.o,$^) $(SYSLIBS)

# What programs cost, with and without the sandbox in the same run: make bench-tenants MODEL=file.gguf PART=tokens ROUNDS=1000 OUTPUT=json
BENCH_WASM   := $(patsubst bench/wat/%.wat,$(BUILD)/wasm/bench/%.wasm,$(sort $(wildcard bench/wat/*.wat)))
BENCH_READER := $(foreach n,0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15,$(BUILD)/bench/guest/reader$(n).wasm)
BENCH_GUEST  := $(BENCH_READER) $(patsubst bench/guest/%.c,$(BUILD)/bench/guest/%.wasm,\
                $(filter-out bench/guest/reader.c,$(sort $(wildcard bench/guest/*.c))))
.PHONY: bench-tenants
bench-tenants: $(BUILD)/bench/tenants $(BENCH_WASM) $(BENCH_GUEST) $(GUEST_DEFAULT)
	$(BUILD)/bench/tenants $(or $(MODEL),$(CACHE)/models/smollm2-135m-instruct-q4_1.gguf) $(if $(PART),--part $(PART)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(OUTPUT),--output $(OUTPUT))

$(BUILD)/wasm/bench/%.wasm: bench/wat/%.wat
	@mkdir -p $(@D)
	$(Q)$(WAT2WASM) $< -o $@

# Sixteen different programs from one source.
$(BENCH_READER): $(BUILD)/bench/guest/reader%.wasm: bench/guest/reader.c $(GUEST_HEADERS) mk/guest.mk
	$(call build_guest,-DVARIANT=$*)
$(BUILD)/bench/guest/%.wasm: bench/guest/%.c $(GUEST_HEADERS) mk/guest.mk
	$(call build_guest)

$(BUILD)/bench/tenants: $(sort $(wildcard bench/tenants/*.c)) bench/serving.c $(foreach f,$(LINK_tenant),$(call objs_of,$(f))) $(DEPS_LIB) | bench/tenants/bench.h bench/serving.h
	@mkdir -p $(@D)
	$(Q)$(CC) $(filter-out -MMD -MP,$(ALL_CFLAGS)) -DBENCH_BUILD='"$(BUILD)"' $(LDFLAGS) -o $@ $(filter %.c %.o %.a,$^) \
	    $(LIBS) $(SYSLIBS)

# Size and start of the same program by every toolchain: the table of docs/programs.md.
.PHONY: bench-programs
bench-programs: $(BUILD)/bench/programs guests-all
	@$(BUILD)/bench/programs $(filter $(BUILD)/guest/stream%,$(SDK_GUESTS))

$(BUILD)/bench/programs: bench/programs.c $(foreach f,$(LINK_sandbox),$(call objs_of,$(f))) $(DEPS_LIB)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $(filter %.c %.o %.a,$^) $(LIBS) $(SYSLIBS)

# Two models busy at once.
.PHONY: bench-models
bench-models: $(BUILD)/bench/models
	$(BUILD)/bench/models $(CACHE)/models/smollm2-135m-instruct-q4_1.gguf $(CACHE)/models/gemma-3-270m-q4_k_m.gguf

# From logits to a token: chains, a grammar.
.PHONY: bench-sampling
bench-sampling: $(BUILD)/bench/sampling
	$(BUILD)/bench/sampling $(CACHE)/models/smollm2-135m-instruct-q4_1.gguf $(CACHE)/models/gemma-3-270m-q4_k_m.gguf

$(BUILD)/bench/sampling: bench/sampling.c $(foreach f,$(LINK_engine),$(call objs_of,$(f))) $(DEPS_LIB)
	@mkdir -p $(@D)
	$(Q)$(CC) $(filter-out -MMD -MP,$(ALL_CFLAGS)) $(LDFLAGS) -o $@ $(filter %.c %.o %.a,$^) $(LIBS) $(SYSLIBS)

# A quiet tenant beside a flooding one: make bench-fairness MODEL=file.gguf
.PHONY: bench-fairness
bench-fairness: $(BUILD)/bench/fairness
	$(BUILD)/bench/fairness $(or $(MODEL),$(CACHE)/models/smollm2-135m-instruct-q4_1.gguf)

$(BUILD)/bench/models $(BUILD)/bench/fairness: $(BUILD)/bench/%: bench/%.c bench/serving.c \
    $(foreach f,$(LINK_engine),$(call objs_of,$(f))) $(DEPS_LIB) | bench/serving.h
	@mkdir -p $(@D)
	$(Q)$(CC) $(filter-out -MMD -MP,$(ALL_CFLAGS)) $(LDFLAGS) -o $@ $(filter %.c %.o %.a,$^) $(LIBS) $(SYSLIBS)
