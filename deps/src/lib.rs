//! The C-callable skin over the Rust crates that Realm stands on.
//!
//! Wasmtime and llguidance bring their own C API; naming the crates here is what puts it into the archive.

extern crate llguidance;
extern crate wasmtime_c_api;
