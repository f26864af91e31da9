;; Writes every page of the machine in one mebibyte.
(module
  (memory (export "memory") 16)
  (func (export "realm_main") (result i32) (local $p i32)
    (loop $l
      (i32.store (local.get $p) (i32.const -1))
      (br_if $l (i32.lt_u (local.tee $p (i32.add (local.get $p) (i32.const 4096))) (i32.const 1048576))))
    (i32.const 0)))
