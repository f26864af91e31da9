;; Every kind of argument arrives as it was sent.
(module
  (import "t" "kinds" (func $kinds (param i32 i32 i64 f32 f64) (result i32)))
  (memory (export "memory") 1)
  (func (export "realm_main") (result i32)
    (call $kinds (i32.const -2) (i32.const -3) (i64.const -4) (f32.const 1.5) (f64.const -2.5))))
