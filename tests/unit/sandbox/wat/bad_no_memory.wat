(module (func (export "realm_main") (result i32) i32.const 0))
