;; Returns what the first wait() said: -11 after a cancel.
(module
  (import "t" "wait" (func $wait (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "realm_main") (result i32) (call $wait (i32.const 0))))
