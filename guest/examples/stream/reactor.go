//go:build reactor

// The same program as a reactor: go build -tags reactor -buildmode=c-shared. Its runtime starts once per instance, in
// _initialize, and realm_main is called after that.
package main

import "realm"

//go:wasmexport realm_main
func realmMain() int32 { return realm.Run(stream) }
