//! The C-callable skin over the Rust crates that Realm stands on.
//!
//! Wasmtime and llguidance bring their own C API; naming the crates here is what puts it into the archive. minijinja
//! has none: `template` is the one that src/template declares and calls.

extern crate llguidance;
extern crate wasmtime_c_api;

mod bounds;
mod digits;
mod marks;
mod python;
mod rewrite;
mod runtime;
mod template;
