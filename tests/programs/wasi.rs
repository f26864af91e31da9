// A WASI command by stock Rust, std and all.
use std::time::{Duration, Instant};

#[link(wasm_import_module = "realm")]
extern "C" {
    fn emit(text: *const u8, len: usize) -> i32;
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let began = Instant::now();
    std::thread::sleep(Duration::from_millis(20));
    println!("printed");
    let mut map = std::collections::HashMap::new(); // seeds itself with random_get
    map.insert("answer", 42);
    let text = format!(
        "args={:?} env={:?} answer={} slept={} files={}",
        args,
        std::env::var("GREETING").unwrap_or_default(),
        map["answer"],
        began.elapsed() >= Duration::from_millis(20),
        std::fs::read("/etc/passwd").is_ok()
    );
    unsafe { emit(text.as_ptr(), text.len()) };
    match args.get(1).map(String::as_str) {
        Some("fail") => std::process::exit(3),
        Some("panic") => panic!("asked to"),
        _ => (),
    }
}
