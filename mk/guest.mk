# Guest programs: C for wasm32, freestanding. The default program is also embedded in the library as bytes. And the
# modules of the sandbox's tests, assembled by wabt.

GUEST_CFLAGS := --target=wasm32 -mbulk-memory -std=c17 -Oz -ffreestanding -fno-builtin -nostdlib \
                -fvisibility=hidden -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Iguest -Iinclude
GUEST_LDFLAGS := --no-entry --strip-debug --gc-sections --export-memory -z stack-size=16384

# Compiled and linked in two steps: driven by clang, the linker's name and a wasm-opt that may stand on the path vary.
define build_guest
	@mkdir -p $(@D)
	$(call say,WASM $@)
	$(Q)$(CLANG) $(GUEST_CFLAGS) $(1) -c -o $(@:.wasm=.o) $<
	$(Q)$(WASM_LD) $(GUEST_LDFLAGS) $(2) -o $@ $(@:.wasm=.o)
endef

GUEST_HEADERS  := guest/realm_guest.h include/realm/abi.h include/realm/status.h
GUEST_EXAMPLES := $(patsubst guest/examples/%.c,$(BUILD)/guest/%.wasm,$(sort $(wildcard guest/examples/*.c)))
GUEST_DEFAULT  := $(BUILD)/guest/default.wasm
DEFAULT_BYTES_MAX := 16384

.PHONY: guests
guests: $(GUEST_DEFAULT) $(GUEST_EXAMPLES)

$(BUILD)/guest/%.wasm: guest/examples/%.c $(GUEST_HEADERS) mk/guest.mk
	$(call build_guest)

$(GUEST_DEFAULT): guest/default/default.c $(GUEST_HEADERS) mk/guest.mk
	$(call build_guest)
	@test $$(wc -c < $@) -le $(DEFAULT_BYTES_MAX) || { echo "$@ is larger than $(DEFAULT_BYTES_MAX) bytes" >&2; rm -f $@; exit 1; }

# --- the default program as a C array ------------------------------------------------------------------------------
DEFAULT_HEADER := $(BUILD)/gen/gen/default_program.h
$(DEFAULT_HEADER): $(GUEST_DEFAULT)
	@mkdir -p $(@D)
	$(Q){ echo '/* Made from guest/default/default.c; do not edit. */'; \
	  echo 'static const unsigned char realm_default_program[] = {'; \
	  od -An -v -tu1 $< | sed 's/\([0-9][0-9]*\)/\1,/g'; \
	  echo '};'; \
	  echo 'static const unsigned long realm_default_program_len = sizeof realm_default_program;'; } > $@

$(BUILD)/obj/tenant/runtime.o: $(DEFAULT_HEADER)

# --- modules for the sandbox's tests -------------------------------------------------------------------------------
WAT_SRCS := $(sort $(wildcard tests/unit/sandbox/wat/*.wat))
WAT_WASM := $(patsubst tests/unit/sandbox/wat/%.wat,$(BUILD)/wasm/test/%.wasm,$(WAT_SRCS))
WAT2WASM ?= wat2wasm

$(BUILD)/wasm/test/%.wasm: tests/unit/sandbox/wat/%.wat
	@mkdir -p $(@D)
	$(Q)$(WAT2WASM) --enable-memory64 $< -o $@

$(BUILD)/unit/sandbox/test_sandbox $(BUILD)/unit/sandbox/test_program: | $(WAT_WASM)
$(BUILD)/unit/sandbox/%: private TEST_CFLAGS += -DTEST_WASM='"$(BUILD)/wasm"'

# --- programs for the tests of the host's functions, for 32-bit and 64-bit memory ----------------------------------
TEST_GUESTS  := $(patsubst tests/unit/tenant/guest/%.c,$(BUILD)/wasm/guest/%.wasm,$(sort $(wildcard tests/unit/tenant/guest/*.c)))
TEST_GUESTS  += $(BUILD)/wasm/guest/probe64.wasm

$(BUILD)/wasm/guest/%64.wasm: tests/unit/tenant/guest/%.c $(GUEST_HEADERS) mk/guest.mk
	$(call build_guest,--target=wasm64,-mwasm64)

$(BUILD)/wasm/guest/%.wasm: tests/unit/tenant/guest/%.c $(GUEST_HEADERS) mk/guest.mk
	$(call build_guest)

$(BUILD)/unit/tenant/test_host: | $(TEST_GUESTS) $(GUEST_EXAMPLES)
$(BUILD)/unit/tenant/test_host: private TEST_CFLAGS += -DTEST_WASM='"$(BUILD)/wasm"' -DTEST_GUESTS='"$(BUILD)/guest"'
