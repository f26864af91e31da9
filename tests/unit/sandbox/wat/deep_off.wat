(module
  (import "t" "deep" (func $deep (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "realm_main") (result i32) (call $deep (i32.const 1))))
