// edit: an answer that is edited while it is written. Where the model writes one word it gets another, and goes on from
// there as if it had chosen that itself. The engine runs ahead meanwhile: it waits for the program only where the
// program is more than eight tokens behind.
import { Generation, Options, Prompt, abi, emit, encode } from "realm-guest";

const WORD = "Paris";
const OTHER = "Lyon";

let text = "";
let ends: i32[] = []; // of the text behind each token
let sent = 0;

// Puts the other word in the place of the one at an index.
function rewrite(answer: Generation, at: i32): void {
  let keep = 0;
  let from = 0;
  for (; ends[keep] <= at; keep++) from = ends[keep];
  const piece = text.substring(from, at) + OTHER; // the word may begin inside a token
  const tokens = encode(piece, abi.TEXT_CONTINUES);
  answer.rewind(keep, tokens);
  text = text.substring(0, from) + piece;
  ends = ends.slice(0, keep);
  for (let i = 0; i < tokens.length; i++) ends.push(text.length);
}

// Gives the client what can be no beginning of the word any more, and confirms it.
function send(answer: Generation, safe: i32): void {
  let sure = 0;
  let to = sent;
  for (; sure < ends.length && ends[sure] <= safe; sure++) to = max(to, ends[sure]);
  if (safe == text.length) to = safe;
  answer.confirm(sure);
  if (to > sent) emit(text.substring(sent, to));
  sent = to;
}

export function realm_main(): i32 {
  const options = new Options().maxTokens(64).temperature(0).runAhead(8);
  const answer = Prompt.own().generate(options, abi.MODE_AHEAD);
  for (;;) {
    const batch = answer.wait();
    const before = text.length;
    for (let i = 0; i < batch.tokens.length; i++) {
      text += batch.texts[i];
      ends.push(text.length);
    }
    text = text.substring(0, before) + batch.text; // with what was held back until the end
    const at = text.indexOf(WORD, sent);
    if (at >= 0) {
      rewrite(answer, at); // an end behind it is none
    } else if (batch.ended) {
      send(answer, text.length);
      return 0;
    }
    send(answer, max(0, text.length - WORD.length + 1));
  }
  return 0;
}
