# Guest programs: C for wasm32, freestanding; the default program is also embedded in the library.
.PHONY: guests
guests:
