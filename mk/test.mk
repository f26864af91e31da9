# Tests. A unit test is tests/unit/<folder>/test_<name>.c, one program each, run from the checkout's root.

UNIT_SRCS  := $(sort $(wildcard tests/unit/*/test_*.c))
UNIT_TESTS := $(patsubst tests/unit/%.c,$(BUILD)/unit/%,$(UNIT_SRCS))
TEST_CFLAGS = $(filter-out -Wmissing-prototypes -Wpedantic,$(ALL_CFLAGS)) -Itests/unit
NEEDS_DEPS := template grammar engine sandbox tenant embed pipeline

.SECONDEXPANSION:
$(BUILD)/unit/%: tests/unit/%.c $$(foreach f,$$(LINK_$$(*D)),$$(call objs_of,$$f)) \
                 $$(if $$(filter $$(*D),$$(NEEDS_DEPS)),$$(DEPS_LIB))
	@mkdir -p $(@D)
	$(call say,TEST $@)
	$(Q)$(CC) $(TEST_CFLAGS) $(LDFLAGS) $(TEST_LDFLAGS) -o $@ $(filter %.c %.o %.a,$^) -lcmocka -lpcre2-8 $(LIBS) $(SYSLIBS)

-include $(wildcard $(BUILD)/unit/*/*.d)

# Under the sanitizers: the same unit tests, built apart, the first with lock ranks checked. The Rust library is not instrumented, its callers are.
ASAN_FLAGS := -O1 -g -DREALM_DEBUG -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
TSAN_FLAGS := -O1 -g -fno-omit-frame-pointer -fsanitize=thread

.PHONY: setup-test unit check test asan tsan e2e examples-test programs-test
setup-test:
	@tools/setup --test
	@tools/fetch-models all >/dev/null
	@tools/build-smith >/dev/null

# Those that compare times want the machine for themselves.
TIMED_TESTS := $(addprefix $(BUILD)/unit/,engine/test_cache_timing tenant/test_hostile)

# Prints "N passed, M failed"; output of those that fail.
unit: $(UNIT_TESTS)
	@tools/run-unit $(UNIT_OPTIONS) $(filter-out $(TIMED_TESTS),$(UNIT_TESTS)) --alone $(TIMED_TESTS)

check: setup-test
	@tools/check-includes --self-test
	@tools/check-includes
	@tools/check-docs
	@$(MAKE) --no-print-directory abi-check
	@$(MAKE) $(JOBS) --no-print-directory unit

asan: setup-test
	@$(MAKE) $(JOBS) --no-print-directory unit BUILD=$(BUILD)/asan CFLAGS="$(ASAN_FLAGS)" LDFLAGS="-fsanitize=address,undefined"

# All of them, some at a twentieth of their speed.
tsan: setup-test
	@$(MAKE) $(JOBS) --no-print-directory unit BUILD=$(BUILD)/tsan UNIT_OPTIONS="--hangs 3600" TSAN_OPTIONS="suppressions=$(CURDIR)/tests/tsan.supp" CFLAGS="$(TSAN_FLAGS)" LDFLAGS="-fsanitize=thread"

# A real server process and the official clients.
e2e: all guests setup-test
	@tools/run-e2e $(BUILD)

# The C examples, as a stranger would run them.
examples-test: examples guests setup-test
	@tests/examples.sh $(BUILD)

# Guest programs by every toolchain, and the pages that show what they do: each command in them is run.
CONSOLE_DOCS := docs/programs.md $(sort $(wildcard guest/examples/*/README.md))
programs-test: all guests-all setup-test
	@python3 tests/console.py $(BUILD) "smollm2=$$(tools/fetch-models smollm2),gemma3=$$(tools/fetch-models gemma3)" $(CONSOLE_DOCS)

test: check
	@$(MAKE) $(JOBS) --no-print-directory all
	@$(MAKE) --no-print-directory e2e
	@$(MAKE) --no-print-directory examples-test
	@$(MAKE) --no-print-directory programs-test
	@$(MAKE) --no-print-directory asan

# A counter in front of the function that compares secrets.
$(BUILD)/unit/store/test_key_compare: private TEST_LDFLAGS = -Wl,--wrap=realm_secret_equal
# A gate in front of the removal of files.
$(BUILD)/unit/tenant/test_models: private TEST_LDFLAGS = -Wl,--wrap=unlink
# Masks that take long.
$(BUILD)/unit/engine/test_masks: private TEST_LDFLAGS = -Wl,--wrap=realm_grammar_state_mask
# Others who change the store at a bad moment.
$(BUILD)/unit/tenant/test_programs: private TEST_LDFLAGS = -Wl,--wrap=realm_store_program_get,--wrap=realm_store_tenant_find

# Tests that run guest programs.
$(BUILD)/unit/tenant/%: private TEST_CFLAGS += -DTEST_GUESTS='"$(BUILD)/guest"'
$(BUILD)/unit/tenant/test_runtime: | $(GUEST_EXAMPLES)
