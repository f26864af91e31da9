;; Two thousand calls that run off the fiber.
(module
  (import "b" "add_off" (func $f (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "realm_main") (result i32) (local $n i32) (local $r i32)
    (loop $l
      (local.set $r (call $f (local.get $r) (i32.const 1)))
      (br_if $l (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 2000))))
    (local.get $r)))
