;; Waits for ever, whatever wait() says.
(module
  (import "t" "wait" (func $wait (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "realm_main") (result i32) (loop $l (drop (call $wait (i32.const 0))) (br $l)) i32.const 0))
