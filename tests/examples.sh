#!/bin/sh
# Runs the C examples against the default model and looks at what they print. Usage: examples.sh BUILD
set -u
build=$1
model=$(tools/fetch-models smollm2) || exit 1
PATH=$(cd "$build" && pwd):$PATH # where the library finds `realm`, which compiles tenants' modules
passed=0 failed=0

# expect NAME PATTERN COMMAND...: the command succeeds and prints a line that matches.
expect() {
    name=$1 pattern=$2
    shift 2
    if out=$("$@" 2>&1) && printf '%s\n' "$out" | grep -Eq "$pattern"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        printf '%s: no line matches %s\n%s\n' "$name" "$pattern" "$out"
    fi
}
expect paris 'Paris' "$build/examples/paris" "$model"
expect simple_test '^ok +the ledger has it all' "$build/examples/simple_test" "$model"
expect multi_tenant '^plain +.*Paris' "$build/examples/multi_tenant" "$model" "$build/guest/shout.wasm" "$build/guest/redact.wasm"
expect multi_tenant '^shout +.*PARIS' "$build/examples/multi_tenant" "$model" "$build/guest/shout.wasm" "$build/guest/redact.wasm"
expect run 'Paris' "$build/realm" run --model "$model" --max-tokens 32 'What is the capital of France? Answer in one sentence.'
expect run_program 'PARIS' "$build/realm" run --model "$model" --max-tokens 32 --program "$build/guest/shout.wasm" 'What is the capital of France? Answer in one sentence.'
expect run_stdin 'Paris' sh -c "echo 'The capital of France is' | '$build/realm' run --model '$model' --raw --max-tokens 8"
expect chat 'Paris' sh -c "printf 'Name the capital of France.\\nThank you.\\n' | '$build/realm' chat --model '$model' --max-tokens 20"

# What an installation exports and says of itself.
if nm -D --defined-only "$build/librealm.so" | awk '{print $3}' | grep -v '^realm_' | grep -q .; then
    echo "librealm.so exports more than realm_ symbols:"
    nm -D --defined-only "$build/librealm.so" | awk '{print $3}' | grep -v '^realm_' | head -5
    failed=$((failed + 1))
else
    passed=$((passed + 1))
fi
if readelf -sW "$build/librealm.a" 2>/dev/null | awk '$5 == "GLOBAL" && $7 != "UND" { print $8 }' | grep -v '^realm_' | grep .; then
    echo "librealm.a lends out the names above"
    failed=$((failed + 1))
else
    passed=$((passed + 1))
fi
dest=$(mktemp -d)
trap 'rm -rf "$dest"' EXIT
trap 'exit 143' TERM
lib=$dest/opt/realm/lib
flags() { PKG_CONFIG_SYSROOT_DIR=$dest PKG_CONFIG_PATH=$lib/pkgconfig pkg-config "$@" realm; }
if make -s install DESTDIR="$dest" PREFIX=/opt/realm BUILD="$build" >/dev/null &&
    cc examples/paris.c $(flags --cflags --libs) -o "$dest/paris" &&
    LD_LIBRARY_PATH=$lib "$dest/paris" "$model" | grep -q Paris &&
    rm "$lib"/librealm.so* && cc examples/paris.c $(flags --static --cflags --libs) -o "$dest/paris_static" &&
    "$dest/paris_static" "$model" | grep -q Paris; then
    passed=$((passed + 1))
else
    echo "an installation does not build and run examples/paris.c, with the shared or with the static library"
    failed=$((failed + 1))
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
