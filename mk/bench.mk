# Benchmarks: programs of bench/, each printing its figures beside the machine's own limits. None is a timed test.
.PHONY: bench bench-linear bench-kernels bench-server

# What a reader of docs/performance.md wants to repeat: both test models, the sandbox, the whole server.
bench: setup-test all bench-sandbox bench-tokens bench-server
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

# What the sandbox costs.
BENCH_WASM := $(patsubst bench/wat/%.wat,$(BUILD)/wasm/bench/%.wasm,$(sort $(wildcard bench/wat/*.wat)))
.PHONY: bench-sandbox
bench-sandbox: $(BUILD)/bench/sandbox $(BENCH_WASM)
	$(BUILD)/bench/sandbox

$(BUILD)/wasm/bench/%.wasm: bench/wat/%.wat
	@mkdir -p $(@D)
	$(Q)$(WAT2WASM) $< -o $@

$(BUILD)/bench/sandbox: bench/sandbox.c $(foreach f,$(LINK_sandbox),$(call objs_of,$(f))) $(DEPS_LIB)
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -DBENCH_WASM='"$(BUILD)/wasm/bench"' $(LDFLAGS) -o $@ $(filter %.c %.o %.a,$^) $(LIBS) $(SYSLIBS)

# What a program in the loop costs per token: make bench-tokens MODEL=file.gguf
.PHONY: bench-tokens
bench-tokens: $(BUILD)/bench/tokens
	$(BUILD)/bench/tokens $(or $(MODEL),$(CACHE)/models/smollm2-135m-instruct-q4_1.gguf)

$(BUILD)/bench/tokens: bench/tokens.c $(foreach f,$(LINK_tenant),$(call objs_of,$(f))) $(DEPS_LIB) | $(GUEST_EXAMPLES)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) -DBENCH_GUEST='"$(BUILD)/guest/shout.wasm"' $(LDFLAGS) -o $@ $(filter %.c %.o %.a,$^) \
	    $(LIBS) $(SYSLIBS)

# Two models busy at once.
.PHONY: bench-models
bench-models: $(BUILD)/bench/models
	$(BUILD)/bench/models $(CACHE)/models/smollm2-135m-instruct-q4_1.gguf $(CACHE)/models/gemma-3-270m-q4_k_m.gguf

$(BUILD)/bench/models: bench/models.c $(foreach f,$(LINK_engine),$(call objs_of,$(f))) $(DEPS_LIB)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $(filter %.c %.o %.a,$^) $(LIBS) $(SYSLIBS)
