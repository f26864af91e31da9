;; Leaves before it has started.
(module
  (import "t" "exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func $s (call $exit (i32.const 11)))
  (start $s)
  (func (export "realm_main") (result i32) (i32.const 1)))
