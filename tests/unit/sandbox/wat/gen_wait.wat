;; As gen, but each of its exports waits.
(module
  (import "t" "wait" (func $wait (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "realm_new") (result i32) (drop (call $wait (i32.const 0))) (i32.const 0))
  (func (export "realm_alloc") (param i32) (result i32) (drop (call $wait (i32.const 0))) (i32.const 1024))
  (func (export "generate") (param i32 i32 i32 i32) (result i32)
    (drop (call $wait (i32.const 0)))
    (local.get 0)))
