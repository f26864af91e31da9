;; A host call that takes long, and one that does not.
(module
  (import "t" "long" (func $long (param i32) (result i32)))
  (import "t" "add" (func $add (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "realm_main") (result i32)
    (call $add (call $long (i32.const 1)) (i32.const 5))))
