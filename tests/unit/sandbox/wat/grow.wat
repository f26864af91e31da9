;; Grows page by page until it is told no; returns the pages that it has, and writes to the last one.
(module
  (memory (export "memory") 1)
  (func (export "realm_main") (result i32)
    (loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
    (i32.store (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 4)) (i32.const 1))
    (memory.size)))
