// stream: hands the answer on as it comes, counts its tokens, and signs with what it counted.
#![no_std]

use core::fmt::Write;
use realm_guest::{abi, emit, input, Client, Error, Events, Mode, Options, Prompt, Result};

realm_guest::entry!(main);
realm_guest::no_std!();

fn main() -> Result<()> {
    let mut name = [0; 256];
    let model = input("model", &mut name)?.unwrap_or("a model");
    let prompt = Prompt::own()?;
    let answer = prompt.generate(&Options::new(), Mode::Events)?;
    let mut room = Events::<64, 16384>::new();
    let mut tokens = 0;
    loop {
        let batch = answer.wait(&mut room)?;
        tokens += batch.tokens().count();
        emit(batch.text()?)?;
        if let Some(end) = batch.end() {
            end?;
            break;
        }
    }
    write!(
        Client,
        "\n\n-- {}: {} tokens in, {} out",
        model,
        prompt.len()?,
        tokens
    )
    .map_err(|_| Error::new(abi::E_IO))
}
