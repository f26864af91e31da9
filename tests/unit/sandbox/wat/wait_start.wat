;; The start function waits.
(module
  (import "t" "sleep" (func $sleep (param i32) (result i32)))
  (memory (export "memory") 1)
  (global $g (mut i32) (i32.const 0))
  (func $start (global.set $g (call $sleep (i32.const 5))))
  (start $start)
  (func (export "realm_main") (result i32) (i32.add (global.get $g) (i32.const 6))))
