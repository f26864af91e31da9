(module
  (import "t" "add" (func (param i32 i64) (result i32)))
  (memory (export "memory") 1)
  (func (export "realm_main") (result i32) i32.const 0))
