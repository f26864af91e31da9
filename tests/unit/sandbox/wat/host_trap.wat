(module
  (import "t" "fail" (func $fail (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "realm_main") (result i32) (call $fail (i32.const 5))))
