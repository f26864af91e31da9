//! Copies the C headers of Wasmtime to the folder that tools/build-deps names: only cargo knows where they stand.

use std::{env, fs, io, path::Path};

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

fn main() {
    println!("cargo:rerun-if-env-changed=REALM_DEPS_INCLUDE");
    println!("cargo:rerun-if-changed=build.rs");
    if let Some(to) = env::var_os("REALM_DEPS_INCLUDE") {
        let from = env::var_os("DEP_WASMTIME_C_API_INCLUDE").expect("wasmtime-c-api-impl names its headers");
        let _ = fs::remove_dir_all(&to); // a version before this one may have had other files
        copy_tree(Path::new(&from), Path::new(&to)).expect("copying Wasmtime's headers");
    }
}
