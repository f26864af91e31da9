(module
  (memory (export "memory") 1)
  (func (export "realm_new") (result i32) i32.const 0)
  (func (export "generate") (param i32 i32 i32 i32) (result i32) i32.const -13))
