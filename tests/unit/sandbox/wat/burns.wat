;; A host call of 30 ms, a nap of 20 ms, and again.
(module
  (import "t" "burn" (func $burn (param i32) (result i32)))
  (import "t" "sleep" (func $sleep (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "realm_main") (result i32)
    (loop $again
      (drop (call $burn (i32.const 30)))
      (drop (call $sleep (i32.const 20)))
      (br $again))
    i32.const 0))
