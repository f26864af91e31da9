;; Its _initialize traps.
(module
  (memory (export "memory") 1)
  (func (export "_initialize") (unreachable))
  (func (export "realm_main") (result i32) (i32.const 1)))
