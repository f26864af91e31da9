# Running, installing, cleaning.
DEMO_STATE   ?= $(BUILD)/state
LISTEN       ?= 127.0.0.1:8080
ADMIN_LISTEN ?= 127.0.0.1:8081

.PHONY: setup serve demo examples install format clean

setup:
	@tools/setup

# In a fresh checkout this installs, builds, downloads and serves; `make` is called again because the paths of the built
# Rust parts are only known after setup.
serve: setup
	@$(MAKE) $(JOBS) --no-print-directory $(BUILD)/realm guests
	@tools/serve $(BUILD) $(DEMO_STATE) $(LISTEN) $(ADMIN_LISTEN)

demo: setup
	@tools/setup --test
	@$(MAKE) $(JOBS) --no-print-directory $(BUILD)/realm guests
	@tools/demo $(BUILD)

# The C examples, linked against the shared library as a stranger would.
EXAMPLES := $(patsubst examples/%.c,$(BUILD)/examples/%,$(wildcard examples/*.c))
examples: $(EXAMPLES)
$(BUILD)/examples/%: examples/%.c include/realm/realm.h include/realm/status.h $(BUILD)/librealm.so
	@mkdir -p $(@D)
	$(CC) -std=c17 $(WARN) $(CFLAGS) -Iinclude $< -o $@ -L$(BUILD) -lrealm -Wl,-rpath,'$$ORIGIN/..'

install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/pkgconfig $(DESTDIR)$(PREFIX)/include/realm \
	    $(DESTDIR)$(PREFIX)/share/realm/guest/realm
	install -m 755 $(BUILD)/realm $(DESTDIR)$(PREFIX)/bin/realm
	install -m 755 $(BUILD)/librealm.so $(DESTDIR)$(PREFIX)/lib/librealm.so.0
	ln -sf librealm.so.0 $(DESTDIR)$(PREFIX)/lib/librealm.so
	install -m 644 $(BUILD)/librealm.a $(DESTDIR)$(PREFIX)/lib/librealm.a
	install -m 644 $(BUILD)/realm.pc $(DESTDIR)$(PREFIX)/lib/pkgconfig/realm.pc
	install -m 644 include/realm/realm.h include/realm/status.h $(DESTDIR)$(PREFIX)/include/realm/
	install -m 644 guest/c/*.h $(DESTDIR)$(PREFIX)/share/realm/guest/
	install -m 644 include/realm/abi.h include/realm/status.h $(DESTDIR)$(PREFIX)/share/realm/guest/realm/
	cp -R guest/rust guest/go guest/assemblyscript $(DESTDIR)$(PREFIX)/share/realm/guest/

format:
	@command -v clang-format-19 >/dev/null || { echo 'make format needs clang-format-19 (Debian package of that name)' >&2; exit 1; }
	clang-format-19 -i $$(git ls-files '*.c' '*.h')

clean:
	rm -rf $(BUILD)
