# What programs know of the host, and guest programs: C for wasm32, freestanding. The default program is also embedded in the library as bytes. And the
# modules of the sandbox's tests, assembled by wabt.

GUEST_CFLAGS := --target=wasm32 -mbulk-memory -std=c17 -Oz -ffreestanding -fno-builtin -nostdlib \
                -fvisibility=hidden -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Iguest/c -Iinclude
GUEST_LDFLAGS := --no-entry --strip-debug --gc-sections --export-memory -z stack-size=16384

# Compiled and linked in two steps: driven by clang, the linker's name and a wasm-opt that may stand on the path vary.
define build_guest
	@mkdir -p $(@D)
	$(call say,WASM $@)
	$(Q)$(CLANG) $(GUEST_CFLAGS) $(1) -c -o $(@:.wasm=.o) $<
	$(Q)$(WASM_LD) $(GUEST_LDFLAGS) $(2) -o $@ $(@:.wasm=.o)
endef

# --- bindings of four languages and the tables of docs/abi.md, from src/tenant/host/abi.h and include/realm/abi.h --------
ABI_GEN := $(BUILD)/tools/abi-gen
ABI_GEN_SRC := $(sort $(wildcard tools/abi-gen/*.c))
$(ABI_GEN): $(ABI_GEN_SRC) tools/abi-gen/abi-gen.h src/tenant/host/abi.h include/realm/abi.h include/realm/status.h
	@mkdir -p $(@D)
	$(call say,CC   tools/abi-gen)
	$(Q)$(CC) -std=c17 -D_GNU_SOURCE $(WARN) $(CFLAGS) -Isrc -Iinclude $(LDFLAGS) -o $@ $(ABI_GEN_SRC)

.PHONY: abi abi-check
abi: $(ABI_GEN)
	@$(ABI_GEN)
abi-check: $(ABI_GEN)
	@$(ABI_GEN) --check

# Constants, sizes and offsets as abi-gen read them, held by the compiler in both memory models.
$(BUILD)/gen/gen/abi_layouts.h: $(ABI_GEN)
	@mkdir -p $(@D)
	$(Q)$(ABI_GEN) --layouts > $@

# --- programs -------------------------------------------------------------------------------------------------------
GUEST_HEADERS  := guest/c/realm_guest.h guest/c/realm_calls.h guest/c/realm_text.h include/realm/abi.h include/realm/status.h
GUEST_EXAMPLES := $(foreach f,$(sort $(wildcard guest/examples/*/*.c)),$(BUILD)/guest/$(basename $(notdir $(f))).wasm)
GUEST_DEFAULT  := $(BUILD)/guest/default.wasm
DEFAULT_BYTES_MAX := 16384

# The transformer that a program writes itself, for 64-bit memory too.
GUEST_EXAMPLES += $(BUILD)/guest/forward64.wasm

.PHONY: guests
guests: $(GUEST_DEFAULT) $(GUEST_EXAMPLES)

.SECONDEXPANSION:
$(BUILD)/guest/%.wasm: guest/examples/$$*/$$*.c $(GUEST_HEADERS) mk/guest.mk
	$(call build_guest)

# --- the same programs by every SDK: compilers that only tests need (tools/setup --test) ---------------------------
SDK_KINDS    := .wasm 64.wasm _wasi.wasm _rust.wasm _as.wasm _go.wasm
SDK_GUESTS   := $(foreach p,stream branches edit similar,$(addprefix $(BUILD)/guest/$(p),$(SDK_KINDS))) $(BUILD)/guest/stream_go_reactor.wasm
RUSTC_WASM    = $(shell tools/find-rust-wasm)
RUST_FLAGS   := --edition 2021 -C opt-level=z -C panic=abort -D warnings
RUST_LINK    := -C lto -C strip=symbols -C link-self-contained=no -C linker=$(WASM_LD) -C linker-flavor=wasm-ld \
                -C link-arg=--no-fatal-warnings
GO_BUILD      = GOOS=wasip1 GOARCH=wasm GOFLAGS=-buildvcs=false $(shell tools/find-go) build -C guest/examples/$* -trimpath \
                -ldflags '-s -w'
GO_SRCS      := $(wildcard guest/go/*.go guest/go/*/*.go) guest/go/go.mod
ASC           = $(shell tools/test-env --dir)/node_modules/.bin/asc

.PHONY: guests-all
guests-all: guests $(SDK_GUESTS)

$(BUILD)/guest/%64.wasm: guest/examples/$$*/$$*.c $(GUEST_HEADERS) mk/guest.mk
	$(call build_guest,--target=wasm64,-mwasm64)

$(BUILD)/guest/%_wasi.wasm: guest/examples/$$*/$$*.c $(GUEST_HEADERS) mk/guest.mk
	@mkdir -p $(@D)
	$(call say,WASM $@)
	$(Q)$(CLANG) --target=wasm32-wasi -mexec-model=reactor -fuse-ld=$(shell command -v $(WASM_LD)) -O2 -s -Iguest/c -Iinclude -o $@ $<

$(BUILD)/guest/librealm_guest.rlib: $(wildcard guest/rust/src/*.rs) mk/guest.mk
	@mkdir -p $(@D)
	$(call say,RUST $@)
	$(Q)$(RUSTC_WASM) $(RUST_FLAGS) --crate-type rlib --crate-name realm_guest -o $@ guest/rust/src/lib.rs

$(BUILD)/guest/%_rust.wasm: guest/examples/$$*/$$*.rs $(BUILD)/guest/librealm_guest.rlib
	$(call say,RUST $@)
	$(Q)$(RUSTC_WASM) $(RUST_FLAGS) $(RUST_LINK) --crate-type cdylib --extern realm_guest=$(BUILD)/guest/librealm_guest.rlib -o $@ $<

$(BUILD)/guest/%_go.wasm: guest/examples/$$*/$$*.go guest/examples/$$*/go.mod $(GO_SRCS) mk/guest.mk
	@mkdir -p $(@D)
	$(call say,GO   $@)
	$(Q)$(GO_BUILD) -o $(abspath $@) .

$(BUILD)/guest/%_go_reactor.wasm: guest/examples/$$*/$$*.go guest/examples/$$*/reactor.go guest/examples/$$*/go.mod $(GO_SRCS) mk/guest.mk
	@mkdir -p $(@D)
	$(call say,GO   $@)
	$(Q)$(GO_BUILD) -tags reactor -buildmode=c-shared -o $(abspath $@) .

$(BUILD)/guest/%_as.wasm: guest/examples/$$*/$$*.ts $(wildcard guest/assemblyscript/*.ts) mk/guest.mk
	@mkdir -p $(@D)/node_modules
	@ln -sfn $(abspath guest/assemblyscript) $(@D)/node_modules/realm-guest
	$(call say,ASC  $@)
	$(Q)$(ASC) $< -o $@ -Osize --runtime stub --path $(@D)/node_modules

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
TEST_GUESTS  += $(patsubst tests/unit/tenant/guest/%.c,$(BUILD)/wasm/guest/%64.wasm,$(sort $(wildcard tests/unit/tenant/guest/probe*.c))) $(addprefix $(BUILD)/wasm/guest/,layouts64.wasm random64.wasm)

$(BUILD)/wasm/guest/%64.wasm: tests/unit/tenant/guest/%.c $(GUEST_HEADERS) mk/guest.mk
	$(call build_guest,--target=wasm64,-mwasm64)

$(BUILD)/wasm/guest/layouts.wasm $(BUILD)/wasm/guest/layouts64.wasm: private GUEST_CFLAGS += -I$(BUILD)/gen
$(BUILD)/wasm/guest/layouts.wasm $(BUILD)/wasm/guest/layouts64.wasm: $(BUILD)/gen/gen/abi_layouts.h

$(BUILD)/wasm/guest/%.wasm: tests/unit/tenant/guest/%.c $(GUEST_HEADERS) mk/guest.mk
	$(call build_guest)

$(TEST_GUESTS): tests/unit/tenant/guest/probe.h
PROGRAM_TESTS := $(addprefix $(BUILD)/unit/tenant/test_,host sequences wasi nn models served modules programs limits hostile tensors late walls usage deleted)
$(BUILD)/unit/tenant/test_hostile: | $(WAT_WASM)
$(PROGRAM_TESTS): | $(TEST_GUESTS) $(GUEST_EXAMPLES)
$(PROGRAM_TESTS): private TEST_CFLAGS += -DTEST_WASM='"$(BUILD)/wasm"' -DTEST_GUESTS='"$(BUILD)/guest"'
$(BUILD)/unit/tenant/test_abi: $(BUILD)/gen/gen/abi_layouts.h
