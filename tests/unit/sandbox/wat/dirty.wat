;; Counts non-zero words in 16 pages, then fills them: a reused slot must be clean.
(module
  (memory (export "memory") 16)
  (func (export "realm_main") (result i32) (local $p i32) (local $n i32)
    (loop $l
      (if (i32.load (local.get $p)) (then (local.set $n (i32.add (local.get $n) (i32.const 1)))))
      (i32.store (local.get $p) (i32.const -1))
      (br_if $l (i32.lt_u (local.tee $p (i32.add (local.get $p) (i32.const 4))) (i32.const 1048576))))
    (local.get $n)))
