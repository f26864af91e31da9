;; Leaves from inside.
(module
  (import "t" "exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func $inner (call $exit (i32.const -5)) (loop $l (br $l)))
  (func (export "realm_main") (result i32) (call $inner) (i32.const 1)))
