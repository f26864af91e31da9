//! Random modules that a server would accept, or nearly: wasm-smith makes them of the imports that the tests offer, with
//! the exports of a program.
//!
//!     module-smith SEED COUNT < imports > modules
//!
//! An import is a line of `module name params result`: the letters of the server's import table with pointers written as
//! the integers that they are (i: i32, l: i64, f: f32, d: f64), `-` for no parameters and for no result. A module is its
//! length in four bytes, least first, and itself. The same seed and imports give the same modules.

use arbitrary::{Arbitrary, Unstructured};
use std::io::{self, BufWriter, Read, Write};
use wasm_encoder::{
    CodeSection, EntityType, ExportKind, ExportSection, Function, FunctionSection, ImportSection, Instruction,
    MemorySection, MemoryType, Module, TypeSection, ValType,
};

/// splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(n).collect()
    }
}

fn values(letters: &str) -> Vec<ValType> {
    letters
        .chars()
        .filter_map(|c| match c {
            'i' => Some(ValType::I32),
            'l' => Some(ValType::I64),
            'f' => Some(ValType::F32),
            'd' => Some(ValType::F64),
            _ => None,
        })
        .collect()
}

/// A module that imports a few of the lines, for wasm-smith to choose from.
fn some_imports(lines: &[&str], random: &mut Random) -> Vec<u8> {
    let (mut types, mut imports) = (TypeSection::new(), ImportSection::new());
    for index in 0..16u32 {
        let line = lines[random.below(lines.len() as u64) as usize];
        let words: Vec<&str> = line.split(' ').collect();
        let [module, name, params, result] = words[..] else { panic!("bad import line: {line}") };
        types.ty().function(values(params), values(result));
        imports.import(module, name, EntityType::Function(index));
    }
    let mut module = Module::new();
    module.section(&types).section(&imports);
    module.finish()
}

/// A module with the exports that a program of one of the three kinds has.
fn program_exports(memory64: bool, random: &mut Random) -> Vec<u8> {
    let address = if memory64 { ValType::I64 } else { ValType::I32 };
    let generate = (vec![address, address, ValType::I32, address], vec![address]);
    let wanted: &[(&str, (Vec<ValType>, Vec<ValType>))] = match random.below(8) {
        0 => &[("_start", (vec![], vec![]))],
        1 => &[("_initialize", (vec![], vec![])), ("realm_main", (vec![], vec![ValType::I32]))],
        2 | 3 => &[("realm_new", (vec![], vec![ValType::I32])), ("generate", generate)],
        _ => &[("realm_main", (vec![], vec![ValType::I32]))],
    };
    let (mut types, mut functions, mut exports, mut code) =
        (TypeSection::new(), FunctionSection::new(), ExportSection::new(), CodeSection::new());
    for (index, (name, (params, results))) in wanted.iter().enumerate() {
        types.ty().function(params.clone(), results.clone());
        functions.function(index as u32);
        exports.export(name, ExportKind::Func, index as u32);
        let mut body = Function::new([]);
        body.instruction(&Instruction::Unreachable).instruction(&Instruction::End);
        code.function(&body);
    }
    let mut memories = MemorySection::new();
    memories.memory(MemoryType {
        minimum: 1 + random.below(4),
        maximum: (random.below(2) == 0).then_some(16),
        memory64,
        shared: false,
        page_size_log2: None,
    });
    exports.export("memory", ExportKind::Memory, 0);
    let mut module = Module::new();
    module.section(&types).section(&functions).section(&memories).section(&exports).section(&code);
    module.finish()
}

/// Most within what is supported, some beyond, one in sixteen not valid at all.
fn one(lines: &[&str], random: &mut Random) -> Option<Vec<u8>> {
    let size = 64 + random.below(8192) as usize;
    let bytes = random.bytes(size);
    let mut source = Unstructured::new(&bytes);
    let beyond = random.below(8) == 0;
    let memory64 = random.below(4) == 0;
    let program = random.below(16) != 0;
    let mut config = wasm_smith::Config {
        available_imports: Some(some_imports(lines, random)),
        exports: program.then(|| program_exports(memory64, random)),
        max_memories: usize::from(!program), // the exported one comes on top
        max_tables: 1,
        max_table_elements: 1000,
        max_memory32_bytes: 1 << 20,
        max_memory64_bytes: 1 << 20,
        max_funcs: 1 + random.below(40) as usize,
        max_instructions: 1 + random.below(400) as usize,
        memory64_enabled: true,
        threads_enabled: false,
        exceptions_enabled: false,
        gc_enabled: false,
        reference_types_enabled: false, // externref
        allow_invalid_funcs: random.below(16) == 0,
        ..Default::default()
    };
    if beyond {
        config.max_memories = 3;
        config.max_tables = 4;
        config.max_table_elements = 1 << 20;
        config.max_memory32_bytes = 1 << 32;
        config.exceptions_enabled = bool::arbitrary(&mut source).ok()?;
        config.gc_enabled = bool::arbitrary(&mut source).ok()?;
        config.reference_types_enabled = true;
        config.threads_enabled = bool::arbitrary(&mut source).ok()?;
        config.custom_page_sizes_enabled = bool::arbitrary(&mut source).ok()?;
        config.generate_custom_sections = true;
    }
    wasm_smith::Module::new(config, &mut source).ok().map(|m| m.to_bytes())
}

fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let number = |i: usize| args.get(i).and_then(|s| s.parse::<u64>().ok());
    let (Some(seed), Some(count)) = (number(1), number(2)) else {
        eprintln!("usage: module-smith SEED COUNT < imports > modules");
        std::process::exit(2);
    };
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    let lines: Vec<&str> = text.lines().collect();
    let mut out = BufWriter::new(io::stdout().lock());
    let mut made = 0;
    for k in 0.. {
        if made == count {
            break;
        }
        // Of its own seed each, so that one can be made again alone.
        let mut random = Random(seed.wrapping_mul(1_000_003).wrapping_add(k));
        let Some(module) = one(&lines, &mut random) else { continue };
        out.write_all(&(module.len() as u32).to_le_bytes())?;
        out.write_all(&module)?;
        made += 1;
    }
    out.flush()
}
