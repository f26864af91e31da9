;; Works for two milliseconds or so, sleeps for one, and again.
(module
  (import "t" "sleep" (func $sleep (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "realm_main") (result i32) (local $i i32)
    (loop $again
      (local.set $i (i32.const 5000000))
      (loop $work
        (local.set $i (i32.sub (local.get $i) (i32.const 1)))
        (i32.store (i32.const 0) (local.get $i))
        (br_if $work (local.get $i)))
      (drop (call $sleep (i32.const 1)))
      (br $again))
    i32.const 0))
