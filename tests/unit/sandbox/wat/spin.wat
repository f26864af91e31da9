;; Never waits, never returns.
(module
  (memory (export "memory") 1)
  (func (export "realm_main") (result i32) (loop $l (br $l)) i32.const 0))
