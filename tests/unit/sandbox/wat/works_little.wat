;; Works for some microseconds, sleeps for ten milliseconds; twenty times.
(module
  (import "t" "sleep" (func $sleep (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "realm_main") (result i32) (local $i i32) (local $n i32)
    (local.set $n (i32.const 20))
    (loop $again
      (local.set $i (i32.const 10000))
      (loop $work
        (local.set $i (i32.sub (local.get $i) (i32.const 1)))
        (i32.store (i32.const 0) (local.get $i))
        (br_if $work (local.get $i)))
      (drop (call $sleep (i32.const 10)))
      (local.set $n (i32.sub (local.get $n) (i32.const 1)))
      (br_if $again (local.get $n)))
    i32.const 0))
