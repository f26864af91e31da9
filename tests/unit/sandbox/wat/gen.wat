;; The specification's pair of entry points: answers with the prompt.
(module
  (memory (export "memory") 1)
  (data (i32.const 16) "unused")
  (global $ready (mut i32) (i32.const 0))
  (func (export "realm_new") (result i32) (global.set $ready (i32.const 1)) i32.const 0)
  (func (export "realm_alloc") (param i32) (result i32) i32.const 1024)
  (func (export "generate") (param $ptr i32) (param $len i32) (param $model i32) (param $options i32) (result i32)
    (if (i32.eqz (global.get $ready)) (then unreachable))
    (if (i32.ne (local.get $model) (i32.const 9)) (then unreachable))
    (if (local.get $options) (then unreachable))
    (local.get $ptr)))
