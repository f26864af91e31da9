;; A command of WASI: _start returns nothing.
(module
  (import "t" "none" (func $none (param i32)))
  (memory (export "memory") 1)
  (func (export "_start") (call $none (i32.const 1))))
