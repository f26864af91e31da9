;; The same with a wait whose callback runs off the fiber.
(module
  (import "t" "wait_off" (func $wait (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "realm_main") (result i32) (local $n i32) (local $sum i32)
    (loop $l
      (local.set $sum (i32.add (local.get $sum) (call $wait (i32.const 0))))
      (br_if $l (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 10))))
    (local.get $sum)))
