;; Spins in bulk memory operations.
(module
  (memory (export "memory") 256)
  (func (export "realm_main") (result i32)
    (loop $l (memory.fill (i32.const 0) (i32.const 7) (i32.const 16777216)) (br $l)) i32.const 0))
