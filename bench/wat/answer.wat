;; The smallest program: returns 42.
(module
  (memory (export "memory") 1)
  (func (export "realm_main") (result i32) i32.const 42))
