;; Leaves where an answer was wanted.
(module
  (import "t" "exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "realm_new") (result i32) (i32.const 0))
  (func (export "generate") (param i32 i32 i32 i32) (result i32) (call $exit (i32.const 0)) (i32.const 0)))
