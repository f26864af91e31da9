;; Spins before it has even started.
(module
  (memory (export "memory") 1)
  (func $start (loop $l (br $l)))
  (start $start)
  (func (export "realm_main") (result i32) i32.const 0))
