(module
  (memory (export "memory") i64 1)
  (func (export "realm_new") (result i32) i32.const 0)
  (func (export "generate") (param i64 i64 i32 i64) (result i64) i64.const -13))
