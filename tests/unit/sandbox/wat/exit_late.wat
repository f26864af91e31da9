;; Leaves through a call that could suspend.
(module
  (import "t" "exit_late" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "realm_main") (result i32) (call $exit (i32.const 12)) (i32.const 1)))
