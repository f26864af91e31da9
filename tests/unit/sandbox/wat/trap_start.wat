(module
  (memory (export "memory") 1)
  (func $boom unreachable)
  (start $boom)
  (func (export "realm_main") (result i32) i32.const 0))
