// A WASI reactor by stock Go: _initialize starts its runtime, then realm_main is called.
package main

import (
	"fmt"
	"strings"
	"unsafe"
)

//go:wasmimport realm emit
func emit(p unsafe.Pointer, n uint32) int32

var greeting = strings.ToUpper("made by _initialize")

//go:wasmexport realm_main
func realmMain() int32 {
	text := []byte(fmt.Sprintf("reactor: %s", greeting))
	emit(unsafe.Pointer(&text[0]), uint32(len(text)))
	return 0
}

func main() {}
