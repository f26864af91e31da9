;; Calls what re-enters; see fixture.h.
(module
  (import "t" "again" (func $again (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "realm_main") (result i32) (call $again (i32.const 0))))
