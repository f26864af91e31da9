# Tests. A unit test is tests/unit/<folder>/test_<name>.c, one program each, run from the checkout's root.

UNIT_SRCS  := $(sort $(wildcard tests/unit/*/test_*.c))
UNIT_TESTS := $(patsubst tests/unit/%.c,$(BUILD)/unit/%,$(UNIT_SRCS))
TEST_CFLAGS = $(filter-out -Wmissing-prototypes -Wpedantic,$(ALL_CFLAGS)) -Itests/unit
NEEDS_DEPS := template sandbox tenant api embed

.SECONDEXPANSION:
$(BUILD)/unit/%: tests/unit/%.c $$(foreach f,$$(LINK_$$(*D)),$$(call objs_of,$$f)) \
                 $$(if $$(filter $$(*D),$$(NEEDS_DEPS)),$$(DEPS_LIB))
	@mkdir -p $(@D)
	$(CC) $(TEST_CFLAGS) $(LDFLAGS) -o $@ $(filter %.c %.o %.a,$^) -lcmocka $(LIBS) $(SYSLIBS)

-include $(wildcard $(BUILD)/unit/*/*.d)

.PHONY: unit check test asan
unit: $(UNIT_TESTS)
	tools/run-unit $(UNIT_TESTS)

check: unit
	tools/check-includes
