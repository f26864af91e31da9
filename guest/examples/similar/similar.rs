// similar: notes that are found by what they mean. Each line of the prompt but the last is a note, kept in the tenant's
// store with its embedding: the hidden state that a forward pass leaves behind its last token. The last line is compared
// with all that there are, those of earlier requests too; its pass is under way while the notes are kept.
#![no_std]

use core::fmt::Write;
use realm_guest::{
    abi, encode, input, store_get, store_list, store_put, Client, Context, Error, PendingPass,
    Result, Text,
};

realm_guest::entry!(main);
realm_guest::no_std!();

const WIDTH: usize = 4096;

/// Starts the pass that embeds a text; it goes on without its context.
fn embed(text: &str) -> Result<PendingPass> {
    let mut room = [0; 512];
    let tokens = encode(text, abi::TEXT_ADD_SPECIAL, &mut room)?;
    Context::new()?.start_forward(tokens, 1, abi::FORWARD_HIDDEN)
}

/// How like a kept one is to what was asked: the cosine, squared with its sign.
fn likeness(asked: &[f32], kept: &[u8]) -> f32 {
    let (mut both, mut own) = (0.0, 0.0);
    for (a, bytes) in asked.iter().zip(kept.chunks_exact(4)) {
        let k = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        both += a * k;
        own += k * k;
    }
    both * if both < 0.0 { -both } else { both } / own
}

fn find(asked: &[f32]) -> Result<(Text<256>, usize)> {
    let (mut keys, mut value) = ([0; 4096], [0; 4 * WIDTH]);
    let (mut best, mut last) = (Text::<256>::new(), Text::<256>::new());
    let (mut most, mut n) = (0.0, 0);
    loop {
        let mut any = false;
        let after = last;
        last = Text::new();
        for key in store_list("note/", after.as_str(), &mut keys)? {
            any = true;
            last.clear();
            last.push(key)?;
            let kept = store_get(key, &mut value)?.unwrap_or(&[]);
            if kept.len() != 4 * asked.len() {
                continue; // another model's
            }
            let like = likeness(asked, kept);
            if n == 0 || like > most {
                most = like;
                best.clear();
                best.push(&key["note/".len()..])?;
            }
            n += 1;
        }
        if !any {
            return Ok((best, n));
        }
    }
}

fn keep(note: &str) -> Result<()> {
    let (mut key, mut hidden, mut value) = (Text::<256>::new(), [0.0; WIDTH], [0; 4 * WIDTH]);
    let pass = embed(note)?.wait()?;
    let embedding = pass.hidden(0, &mut hidden)?;
    key.push("note/")?;
    key.push(note)?;
    for (to, e) in value.chunks_exact_mut(4).zip(embedding) {
        to.copy_from_slice(&e.to_le_bytes());
    }
    store_put(key.as_str(), &value[..4 * embedding.len()])
}

fn main() -> Result<()> {
    let (mut prompt, mut hidden) = ([0; 2048], [0.0; WIDTH]);
    let prompt = input("prompt", &mut prompt)?.ok_or(Error::new(abi::E_NOT_FOUND))?;
    let (notes, question) = prompt.split_at(prompt.rfind('\n').map_or(0, |at| at + 1));
    let asked = embed(question)?;
    for note in notes.split_terminator('\n') {
        keep(note)?;
    }
    let (best, n) = find(asked.wait()?.hidden(0, &mut hidden)?)?;
    write!(Client, "{} (1 of {})", best.as_str(), n).map_err(|_| Error::new(abi::E_IO))
}
