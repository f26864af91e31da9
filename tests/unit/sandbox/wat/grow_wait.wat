;; Memory grows between two waits: the host must see the new size.
(module
  (import "t" "sleep" (func $sleep (param i32) (result i32)))
  (import "t" "touch" (func $touch (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "realm_main") (result i32)
    (drop (call $sleep (i32.const 1)))
    (drop (memory.grow (i32.const 20)))
    (drop (call $sleep (i32.const 1)))
    (call $touch (i32.const 1300000) (i32.const 4))))
