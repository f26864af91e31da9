;; Spins through host calls that note the thread they run on.
(module
  (import "t" "where" (func $where (param i32) (result i32)))
  (import "t" "where_off" (func $where_off (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "realm_main") (result i32)
    (loop $l (drop (call $where (i32.const 1))) (drop (call $where_off (i32.const 2))) (br $l)) i32.const 0))
