# Realm's build. `make help` lists the targets; docs/building.md explains the parts.
#
# Objects of a folder of src/ stand in $(BUILD)/obj/<folder>/. A unit test links only the folders below its own in the
# include table of docs/architecture.md (the LINK_ lists), so a forbidden dependency fails to link as well as to lint.

BUILD   ?= build
PREFIX  ?= /usr/local
CC      ?= gcc
AR      ?= ar
LD      ?= ld
OBJCOPY ?= objcopy
OPT     ?= -O2
CLANG   ?= clang-19
WASM_LD ?= wasm-ld-19

VERSION := 0.1.0
CACHE   := $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/realm

WARN    := -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes -Wvla \
           $(if $(CI),-Werror)
CFLAGS  ?= $(OPT) -g
ALL_CFLAGS = -std=c17 -D_GNU_SOURCE -DREALM_VERSION='"$(VERSION)"' -fPIC \
           -fvisibility=hidden -fno-math-errno -ffp-contract=off -fstack-protector-strong -pthread $(WARN) $(CFLAGS) \
           -Isrc -Iinclude -I$(BUILD)/gen -MMD -MP
LIBS    := -lcrypto -ljansson -lyaml -lsqlite3 -lutf8proc
SYSLIBS := -lm -ldl -pthread

# Sub-makes that build use every core. One line per file built; V=1 shows the commands.
JOBS ?= -j$(shell nproc)
Q := $(if $(V),,@)
say = $(if $(V),@:,@echo "  $(1)")

# --- the Rust parts (Wasmtime, llguidance, minijinja), built once per lock hash into the cache --------------------
DEPS_DIR := $(shell tools/deps-dir)
DEPS_LIB := $(DEPS_DIR)/librealm_deps.a
DEPS_INC := -isystem $(DEPS_DIR)/include

# --- sources ------------------------------------------------------------------------------------------------------
FOLDERS := $(sort $(notdir $(patsubst %/,%,$(wildcard src/*/))))
srcs_of  = $(shell find src/$(1) -name '*.c' 2>/dev/null | LC_ALL=C sort)
objs_of  = $(patsubst src/%.c,$(BUILD)/obj/%.o,$(call srcs_of,$(1)))

# What a test of a folder links: the folder and everything it may include, transitively.
LINK_base      := base
LINK_crypto    := base crypto
LINK_quant     := base quant
LINK_gguf      := base quant gguf
LINK_data      := base data
LINK_store     := base crypto store
LINK_template  := base data template
LINK_tokenizer := base quant gguf tokenizer
LINK_compute   := base quant compute
LINK_model     := base quant gguf compute model
LINK_tensor    := base quant gguf compute model tensor
LINK_grammar   := base quant gguf tokenizer grammar
LINK_engine    := base crypto quant gguf tokenizer compute model grammar engine
LINK_sandbox   := base crypto sandbox
LINK_tenant    := base crypto quant gguf data store template tokenizer compute model tensor grammar engine sandbox tenant
LINK_pipeline  := $(LINK_tenant) pipeline
LINK_catalog   := base crypto quant gguf data catalog
LINK_net       := base net
LINK_guest     := base# headers of guest/, compiled for the host
LINK_api       := base data net api# its tests bring a double of tenant.h
LINK_embed     := $(LINK_tenant) embed

LIB_FOLDERS := $(LINK_embed)
LIB_OBJS    := $(foreach f,$(LIB_FOLDERS),$(call objs_of,$(f)))
BIN_OBJS    := $(foreach f,net api catalog pipeline cli,$(call objs_of,$(f)))

.PHONY: all help
all: $(BUILD)/realm $(BUILD)/librealm.a $(BUILD)/librealm.so $(BUILD)/realm.pc guests

help:
	@sed -n 's/^## //p' Makefile

## make            build the program, the libraries and the guest programs
## make serve      install what is missing, build, fetch the default model, serve it
## make demo       two tenants, two programs, one model: what is the capital of France?
## make test       every test (make check: the fast ones alone)
## make asan       unit and parser tests under the address and undefined-behaviour sanitizers
## make fuzz-gguf  fuzz one parser, SECONDS=60 (make fuzz: each of tests/fuzz in turn)
## make fuzz-modules  10,000 random WebAssembly modules as programs, MODULES=, SEED=
## make bench      speed, memory and sandbox cost on this machine
## make abi        what programs know of the host: guest/ bindings and docs/abi.md, after a change of the ABI
## make format     clang-format over the C sources
## make install    DESTDIR= PREFIX=
## make clean      remove build/

# Kernels: one file per instruction set, with its own flags. Nothing else may use instructions above the baseline.
$(BUILD)/obj/compute/cpu/x86/%_avx2.o:   ISA := -mavx2 -mfma -mf16c -mbmi2
$(BUILD)/obj/compute/cpu/x86/%_avx512.o: ISA := -mavx2 -mfma -mf16c -mbmi2 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512
$(BUILD)/obj/compute/cpu/x86/%_vnni.o:   ISA := -mavx2 -mfma -mf16c -mbmi2 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mprefer-vector-width=512
$(BUILD)/obj/compute/%.o: private LEVEL := -O3
# Kernels are unrolled by the dozen: instrumented by a sanitizer they take minutes to compile and test nothing that the
# comparison with the scalar definition does not.
$(BUILD)/obj/compute/cpu/x86/%.o: private PLAIN := -fsanitize% -fno-sanitize-recover%
# Sampling reads whole vocabularies; comparisons that might trap would keep its loops from becoming vector code.
$(BUILD)/obj/engine/select.o: CFLAGS += -O3 -fno-trapping-math
$(BUILD)/obj/sandbox/%.o $(BUILD)/obj/template/%.o $(BUILD)/obj/grammar/%.o: private INC := $(DEPS_INC)
$(call objs_of,sandbox) $(call objs_of,template) $(call objs_of,grammar): | $(DEPS_LIB)

$(BUILD)/obj/%.o: src/%.c
	@mkdir -p $(@D)
	$(call say,CC   $<)
	$(Q)$(CC) $(filter-out $(PLAIN),$(ALL_CFLAGS)) $(LEVEL) $(INC) $(ISA) -c $< -o $@

# The static library is one object with the Rust parts inside and every name but realm_* made local, so that it neither
# clashes with what it is linked to nor lends out its insides.
$(BUILD)/librealm.a: $(LIB_OBJS) $(DEPS_LIB)
	@rm -f $@
	$(call say,AR   $@)
	$(Q)$(LD) -r -o $(BUILD)/librealm.o $^
	$(Q)$(OBJCOPY) --localize-hidden -w --keep-global-symbol='realm_*' -R .llvmbc -R .llvmcmd $(BUILD)/librealm.o
	$(Q)$(AR) rcs $@ $(BUILD)/librealm.o
	@rm -f $(BUILD)/librealm.o

$(BUILD)/realm: $(BIN_OBJS) $(LIB_OBJS) $(DEPS_LIB)
	$(call say,LD   $@)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $(BIN_OBJS) $(LIB_OBJS) $(DEPS_LIB) $(LIBS) $(SYSLIBS) -Wl,--gc-sections

$(BUILD)/librealm.so: $(LIB_OBJS) $(DEPS_LIB) tools/librealm.map
	$(call say,LD   $@)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -shared -Wl,-soname,librealm.so.0 -Wl,--version-script=tools/librealm.map -o $@ \
	    $(LIB_OBJS) $(DEPS_LIB) $(LIBS) $(SYSLIBS) -Wl,--gc-sections
	@ln -sf librealm.so $(BUILD)/librealm.so.0

# What depends on PREFIX is made again when it changes.
$(BUILD)/prefix: FORCE
	@mkdir -p $(@D)
	@echo '$(PREFIX)' | cmp -s - $@ || echo '$(PREFIX)' > $@
.PHONY: FORCE
$(BUILD)/obj/embed/embed.o: $(BUILD)/prefix
$(BUILD)/obj/embed/embed.o: private ISA := -DREALM_PREFIX='"$(PREFIX)"'

$(BUILD)/realm.pc: tools/realm.pc.in Makefile $(BUILD)/prefix
	@mkdir -p $(@D)
	$(Q)sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@VERSION@|$(VERSION)|' -e 's|@LIBS@|$(LIBS) $(SYSLIBS)|' $< > $@

# No prerequisites: the folder's name is the hash of what goes in.
$(DEPS_LIB):
	tools/build-deps

-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)
include mk/guest.mk
include mk/test.mk
include mk/fuzz.mk
include mk/bench.mk
include mk/run.mk
