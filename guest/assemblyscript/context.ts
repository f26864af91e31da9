// Contexts, forward passes, what their logits say, samplers and grammars: for programs that decide on tokens themselves.
import * as abi from "./abi";
import { Generation, Options, Prompt, check, limits } from "./index";

// A token sequence and, once computed, its KV pages.
export class Context {
  private constructor(public readonly handle: i32) {}

  static create(): Context {
    return new Context(check(abi.context_new()));
  }

  // A fork of one that was saved under a name, by this request or an earlier one of the tenant; null when there is none.
  static open(name: string): Context | null {
    const n = String.UTF8.encode(name);
    const handle = abi.context_open(changetype<usize>(n), n.byteLength);
    return handle == abi.E_NOT_FOUND ? null : new Context(check(handle));
  }

  // Forgets a saved one.
  static forget(name: string): void {
    const n = String.UTF8.encode(name);
    check(abi.context_drop(changetype<usize>(n), n.byteLength));
  }

  // Keeps a copy under a name, for later requests of the tenant.
  save(name: string): void {
    const n = String.UTF8.encode(name);
    check(abi.context_save(this.handle, changetype<usize>(n), n.byteLength));
  }

  // Adds tokens, to be computed with the next pass or generation; the new length.
  append(tokens: StaticArray<i32>): i32 {
    return check(abi.context_append(this.handle, changetype<usize>(tokens), tokens.length));
  }

  appendPrompt(prompt: Prompt): i32 {
    return check(abi.context_append_prompt(this.handle, prompt.handle));
  }

  // A second one with the same tokens; pages are shared until one of the two writes to them.
  fork(): Context {
    return new Context(check(abi.context_fork(this.handle)));
  }

  // Keeps the first n tokens.
  truncate(n: u32): void {
    check(abi.context_truncate(this.handle, n));
  }

  stat(): abi.GuestContext {
    const out = new abi.GuestContext();
    check(abi.context_stat(this.handle, changetype<usize>(out)));
    return out;
  }

  // Its tokens from a position on.
  tokens(from: u32 = 0): StaticArray<i32> {
    const n = this.stat().n_tokens;
    const out = new StaticArray<i32>(from < n ? n - from : 0);
    if (from < n) check(abi.context_get_tokens(this.handle, from, changetype<usize>(out), out.length));
    return out;
  }

  // Adds tokens, computes what is not computed yet and waits for it: the logits of the last `rows` tokens.
  forward(tokens: StaticArray<i32>, rows: u32 = 1, flags: u32 = 0): Pass {
    return this.startForward(tokens, rows, flags).wait();
  }

  // Begins what `forward` does: what the program does until it waits is done while the pass is computed, and passes that
  // are under way at the same time are one batch. The context is busy until then.
  startForward(tokens: StaticArray<i32>, rows: u32 = 1, flags: u32 = 0): PendingPass {
    return new PendingPass(check(abi.forward(this.handle, changetype<usize>(tokens), tokens.length, rows, flags)));
  }

  // Goes on from here; what is generated becomes part of the context.
  generate(options: Options = new Options(), mode: u32 = abi.MODE_EVENTS): Generation {
    const raw = options.finished();
    raw.context = this.handle;
    raw.set |= abi.SET_CONTEXT;
    return new Generation(check(abi.generate(0, changetype<usize>(raw), mode)));
  }

  close(): void {
    check(abi.close(this.handle));
  }
}

// A token with its log-probability.
export class Token {
  constructor(public token: i32, public logprob: f32) {}
}

// A forward pass that was begun: to be waited for, or closed.
export class PendingPass {
  constructor(public readonly handle: i32) {}

  // Waits until it is done; its handle is then the pass's.
  wait(): Pass {
    const end = new abi.GuestEvent();
    check(abi.wait(this.handle, changetype<usize>(end), 1, 0, 0, -1));
    check(end.status);
    return new Pass(this.handle);
  }

  // What is not computed yet is given up.
  close(): void {
    check(abi.close(this.handle));
  }
}

// A forward pass that is done: rows of logits, the last of them for the token that comes next.
export class Pass {
  constructor(public readonly handle: i32) {}

  // Draws a token with a sampler, or the most likely one.
  sample(row: u32 = 0, sampler: Sampler | null = null): Token {
    const logprob = new StaticArray<f32>(1);
    const token = check(abi.logits_sample(this.handle, row, sampler ? sampler.handle : 0, changetype<usize>(logprob)));
    return new Token(token, logprob[0]);
  }

  // The k most likely tokens.
  top(row: u32, k: u32): Token[] {
    const room = new ArrayBuffer(k * offsetof<abi.GuestToken>());
    const at = changetype<usize>(room);
    const n = check(abi.logits_top(this.handle, row, k, at, k));
    const out: Token[] = [];
    for (let i = 0; i < n; i++) {
      const t = changetype<abi.GuestToken>(at + i * offsetof<abi.GuestToken>());
      out.push(new Token(t.token, t.logprob));
    }
    return out;
  }

  // Log-probabilities of given tokens.
  gather(row: u32, tokens: StaticArray<i32>): StaticArray<f32> {
    const out = new StaticArray<f32>(tokens.length);
    check(abi.logits_gather(this.handle, row, changetype<usize>(tokens), tokens.length, changetype<usize>(out)));
    return out;
  }

  stats(row: u32): abi.GuestLogitStats {
    const out = new abi.GuestLogitStats();
    check(abi.logits_stats(this.handle, row, changetype<usize>(out)));
    return out;
  }

  // A whole row. Metered (read_bytes).
  logits(row: u32 = 0): StaticArray<f32> {
    const out = new StaticArray<f32>(check(abi.logits_read(this.handle, row, 0, 0)));
    check(abi.logits_read(this.handle, row, changetype<usize>(out), out.length));
    return out;
  }

  // The hidden state of a row after the final norm, the embedding of the text up to there, of a pass with
  // abi.FORWARD_HIDDEN among its flags. Metered (read_bytes).
  hidden(row: u32 = 0): StaticArray<f32> {
    const out = new StaticArray<f32>(check(abi.hidden_read(this.handle, row, 0, 0)));
    check(abi.hidden_read(this.handle, row, changetype<usize>(out), out.length));
    return out;
  }

  // Adds to the logit of a token.
  bias(row: u32, token: i32, bias: f32): void {
    const one = new abi.Bias();
    one.token = token;
    one.bias = bias;
    check(abi.logits_bias(this.handle, row, changetype<usize>(one), 1));
  }

  // Keeps the tokens whose bit is set.
  mask(row: u32, bits: ArrayBuffer): void {
    check(abi.logits_mask(this.handle, row, changetype<usize>(bits), bits.byteLength));
  }

  close(): void {
    check(abi.close(this.handle));
  }
}

// A chain of stages that the host runs; `stages` are abi.SamplerStage one after the other, see abi.STAGE_*.
export class Sampler {
  private constructor(public readonly handle: i32) {}

  static create(stages: ArrayBuffer, seed: u64): Sampler {
    const n = stages.byteLength / offsetof<abi.SamplerStage>();
    return new Sampler(check(abi.sampler_new(changetype<usize>(stages), n, seed)));
  }

  // A copy with the same history.
  fork(): Sampler {
    return new Sampler(check(abi.sampler_fork(this.handle)));
  }

  // Takes note of tokens that were not drawn with it.
  accept(tokens: StaticArray<i32>): void {
    check(abi.sampler_accept(this.handle, changetype<usize>(tokens), tokens.length));
  }

  // Takes note of the tokens of a prompt.
  prompt(tokens: StaticArray<i32>): void {
    check(abi.sampler_prompt(this.handle, changetype<usize>(tokens), tokens.length));
  }

  close(): void {
    check(abi.close(this.handle));
  }
}

// A JSON Schema, a regular expression or a Lark grammar, and how far a text has come in it.
export class Grammar {
  private constructor(public readonly handle: i32) {}

  // kind: abi.GRAMMAR_JSON_SCHEMA, GRAMMAR_REGEX or GRAMMAR_LARK.
  static compile(kind: u32, text: string): Grammar {
    const bytes = String.UTF8.encode(text);
    return new Grammar(check(abi.grammar_compile(kind, changetype<usize>(bytes), bytes.byteLength)));
  }

  // A copy in the same state.
  fork(): Grammar {
    return new Grammar(check(abi.grammar_fork(this.handle)));
  }

  // Goes on by as many of the tokens as are allowed; how many.
  accept(tokens: StaticArray<i32>): i32 {
    return check(abi.grammar_accept(this.handle, changetype<usize>(tokens), tokens.length));
  }

  rollback(n: u32): void {
    check(abi.grammar_rollback(this.handle, n));
  }

  // The tokens that may come next, for Pass.mask.
  mask(): ArrayBuffer {
    const bits = new ArrayBuffer((limits().vocabulary + 7) / 8);
    check(abi.grammar_mask(this.handle, changetype<usize>(bits), bits.byteLength));
    return bits;
  }

  // Bits abi.GRAMMAR_CAN_END and GRAMMAR_MUST_END.
  get state(): i32 {
    return check(abi.grammar_state(this.handle));
  }

  close(): void {
    check(abi.close(this.handle));
  }
}
