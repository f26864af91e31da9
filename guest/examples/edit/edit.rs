// edit: an answer that is edited while it is written. Where the model writes one word it gets another, and goes on from
// there as if it had chosen that itself. The engine runs ahead meanwhile: it waits for the program only where the
// program is more than eight tokens behind.
#![no_std]

use realm_guest::{abi, emit, encode, Events, Generation, Mode, Options, Prompt, Result, Text};

realm_guest::entry!(main);
realm_guest::no_std!();

const WORD: &str = "Paris";
const OTHER: &str = "Lyon";
const TOKENS: usize = 64;

struct Answer {
    generation: Generation,
    text: Text<4096>,
    ends: [usize; TOKENS], // of the text behind each token
    n: usize,
    sent: usize,
}

impl Answer {
    /// Puts the other word in the place of the one at an index.
    fn rewrite(&mut self, at: usize) -> Result<()> {
        let keep = self.ends[..self.n].iter().take_while(|&&e| e <= at).count();
        let from = if keep > 0 { self.ends[keep - 1] } else { 0 };
        let mut piece = Text::<256>::new();
        piece.push(&self.text.as_str()[from..at])?; // the word may begin inside a token
        piece.push(OTHER)?;
        let mut room = [0; TOKENS];
        let tokens = encode(piece.as_str(), abi::TEXT_CONTINUES, &mut room[..TOKENS - keep])?;
        self.generation.rewind(keep as u32, tokens)?;
        self.text.truncate(from);
        self.text.push(piece.as_str())?;
        self.n = keep + tokens.len();
        self.ends[keep..self.n].fill(self.text.as_str().len());
        Ok(())
    }

    /// Gives the client what can be no beginning of the word any more, and confirms it.
    fn send(&mut self, safe: usize) -> Result<()> {
        let sure = self.ends[..self.n].iter().take_while(|&&e| e <= safe).count();
        let last = if sure > 0 { self.ends[sure - 1] } else { 0 };
        let whole = self.text.as_str().len();
        let to = if safe == whole { whole } else { last };
        self.generation.confirm(sure as u32)?;
        if to > self.sent {
            emit(&self.text.as_str()[self.sent..to])?;
            self.sent = to;
        }
        Ok(())
    }
}

fn main() -> Result<()> {
    let options = Options::new().max_tokens(TOKENS as u32).temperature(0.0).run_ahead(8);
    let generation = Prompt::own()?.generate(&options, Mode::Ahead)?;
    let mut a = Answer { generation, text: Text::new(), ends: [0; TOKENS], n: 0, sent: 0 };
    let mut room = Events::<16, 4096>::new();
    loop {
        let batch = a.generation.wait(&mut room)?;
        let before = a.text.as_str().len();
        a.text.push(batch.text()?)?;
        for token in batch.tokens() {
            a.ends[a.n] = before + (token.text_at + token.text_len) as usize;
            a.n += 1;
        }
        let end = batch.end();
        if let Some(at) = a.text.as_str()[a.sent..].find(WORD) {
            a.rewrite(a.sent + at)?; // an end behind it is none
        } else if let Some(end) = end {
            end?;
            return a.send(a.text.as_str().len());
        }
        a.send((a.text.as_str().len() + 1).saturating_sub(WORD.len()))?;
    }
}
