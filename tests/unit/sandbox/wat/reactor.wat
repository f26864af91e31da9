;; A reactor of WASI: _initialize sets what realm_main returns.
(module
  (memory (export "memory") 1)
  (global $g (mut i32) (i32.const 0))
  (func (export "_initialize") (global.set $g (i32.add (global.get $g) (i32.const 7))))
  (func (export "realm_main") (result i32) (global.get $g)))
