;; Does what order() says: 1 nothing, 2 heavy(6), 3 moves(6), 4 spins for ever, 5 reads outside its memory, 6 rests(6),
;; 7 asks(6) twice, from 16 on goes round a loop 1,024 times as often, else returns the sum of what came back.
(module
  (import "t" "order" (func $order (result i32)))
  (import "t" "heavy" (func $heavy (param i32) (result i32)))
  (import "t" "moves" (func $moves (param i32) (result i32)))
  (import "t" "rests" (func $rests (param i32) (result i32)))
  (import "t" "asks" (func $asks (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "realm_main") (result i32) (local $o i32) (local $sum i32)
    (loop $next
      (local.set $o (call $order))
      (if (i32.eq (local.get $o) (i32.const 2))
        (then (local.set $sum (i32.add (local.get $sum) (call $heavy (i32.const 6))))))
      (if (i32.eq (local.get $o) (i32.const 3))
        (then (local.set $sum (i32.add (local.get $sum) (call $moves (i32.const 6))))))
      (if (i32.eq (local.get $o) (i32.const 4)) (then (loop $spin (br $spin))))
      (if (i32.eq (local.get $o) (i32.const 5)) (then (drop (i32.load (i32.const 0x10000000)))))
      (if (i32.eq (local.get $o) (i32.const 6))
        (then
          (local.set $sum (i32.add (local.get $sum) (call $rests (i32.const 6))))
          (br $next)))
      (if (i32.eq (local.get $o) (i32.const 7))
        (then
          (local.set $sum (i32.add (local.get $sum) (call $asks (i32.const 6))))
          (local.set $sum (i32.add (local.get $sum) (call $asks (i32.const 6))))
          (br $next)))
      (if (i32.ge_u (local.get $o) (i32.const 16))
        (then
          (local.set $o (i32.shl (local.get $o) (i32.const 10)))
          (loop $round (br_if $round (local.tee $o (i32.sub (local.get $o) (i32.const 1)))))
          (br $next)))
      (br_if $next (i32.lt_u (local.get $o) (i32.const 4))))
    (local.get $sum)))
