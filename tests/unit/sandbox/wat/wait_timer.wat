;; Waits 20 ms by the host's clock, three times.
(module
  (import "t" "sleep" (func $sleep (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "realm_main") (result i32)
    (i32.add (call $sleep (i32.const 20)) (i32.add (call $sleep (i32.const 20)) (call $sleep (i32.const 20))))))
