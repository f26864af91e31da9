# Guest programs: C for wasm32, freestanding. The default program is also embedded in the library as bytes. And the
# modules of the sandbox's tests, assembled by wabt.

GUEST_CFLAGS := --target=wasm32 -std=c17 -Oz -ffreestanding -fno-builtin -nostdlib -fvisibility=hidden -Wall -Wextra \
                -Wpedantic -Wshadow -Wconversion -Iguest -Iinclude
GUEST_LDFLAGS := -Wl,--no-entry -Wl,--strip-all -Wl,-z,stack-size=16384 -Wl,--gc-sections

WAT_SRCS := $(sort $(wildcard tests/unit/sandbox/wat/*.wat))
WAT_WASM := $(patsubst tests/unit/sandbox/wat/%.wat,$(BUILD)/wasm/test/%.wasm,$(WAT_SRCS))
WAT2WASM ?= wat2wasm

.PHONY: guests
guests:

$(BUILD)/wasm/test/%.wasm: tests/unit/sandbox/wat/%.wat
	@mkdir -p $(@D)
	$(WAT2WASM) --enable-memory64 $< -o $@

$(BUILD)/unit/sandbox/test_sandbox $(BUILD)/unit/sandbox/test_program: | $(WAT_WASM)
$(BUILD)/unit/sandbox/%: private CFLAGS += -DTEST_WASM='"$(BUILD)/wasm"'
