// For programs in AssemblyScript: what a tenant's program calls on its host.
//
// A program exports `realm_main(): i32`; it reads the request with input(), starts generations from a Prompt, hands text
// out with emit() or lets tokens go straight to the client (abi.MODE_PIPE). AssemblyScript cannot catch what is thrown,
// so a call that fails ends the program with the host's own words, which the client and the server's log get; where a
// failure is an answer (a field that is absent), null says so. Handles are given back with close(), or when the program
// ends. `abi` is the whole interface as it is, with result codes, for what has no wrapper.
import * as abi from "./abi";
import { Grammar, Sampler } from "./context";

export { abi };
export { Context, Grammar, Pass, PendingPass, Sampler, Token } from "./context";

// The host's words for the last call that failed.
export function lastError(): string {
  const buffer = new ArrayBuffer(512);
  const n = abi.last_error(changetype<usize>(buffer), 512);
  return String.UTF8.decodeUnsafe(changetype<usize>(buffer), min<i32>(max<i32>(n, 0), 512));
}

// The result of a call of `abi`; one that failed ends the program.
export function check(result: i32): i32 {
  if (result < 0) throw new Error(abi.codeText(result) + ": " + lastError());
  return result;
}

// ---- input and output ----

// A top-level field of the request, or with "" all of it: a string as its text, anything else as JSON; null when there
// is no such field.
export function input(name: string): string | null {
  const key = String.UTF8.encode(name);
  const keyAt = changetype<usize>(key);
  const n = abi.input(keyAt, key.byteLength, 0, 0);
  if (n == abi.E_NOT_FOUND) return null;
  const buffer = new ArrayBuffer(check(n));
  check(abi.input(keyAt, key.byteLength, changetype<usize>(buffer), buffer.byteLength));
  return String.UTF8.decode(buffer);
}

// Hands text to the client; waits while the client is slow.
export function emit(text: string): void {
  const bytes = String.UTF8.encode(text);
  check(abi.emit(changetype<usize>(bytes), bytes.byteLength));
}

// How the answer ends (abi.END_STOP, abi.END_LENGTH), where that is not how the last generation did.
export function finish(reason: u32): void {
  check(abi.finish(reason));
}

// A line in the server's log; level 0 (debug) to 3 (error).
export function log(level: i32, text: string): void {
  const bytes = String.UTF8.encode(text);
  check(abi.log(level, changetype<usize>(bytes), bytes.byteLength));
}

// What this instance may use.
export function limits(): abi.GuestLimits {
  const out = new abi.GuestLimits();
  check(abi.limits_get(changetype<usize>(out), offsetof<abi.GuestLimits>()));
  return out;
}

// Milliseconds of abi.CLOCK_MONOTONIC or abi.CLOCK_WALL.
export function clockMs(clock: u32): i64 {
  const out = new StaticArray<i64>(1);
  check(abi.clock_ms(clock, changetype<usize>(out)));
  return out[0];
}

// ---- text ----

// Token ids of a text; flags abi.TEXT_*.
export function encode(text: string, flags: u32 = 0): StaticArray<i32> {
  const bytes = String.UTF8.encode(text);
  const from = changetype<usize>(bytes);
  const out = new StaticArray<i32>(check(abi.encode(from, bytes.byteLength, flags, 0, 0)));
  check(abi.encode(from, bytes.byteLength, flags, changetype<usize>(out), out.length));
  return out;
}

// Text of tokens; flag abi.TEXT_SPECIAL shows control tokens.
export function decode(tokens: StaticArray<i32>, flags: u32 = 0): string {
  const from = changetype<usize>(tokens);
  const buffer = new ArrayBuffer(check(abi.decode(from, tokens.length, flags, 0, 0)));
  check(abi.decode(from, tokens.length, flags, changetype<usize>(buffer), buffer.byteLength));
  return String.UTF8.decode(buffer);
}

// The bytes that one token stands for; flag abi.TEXT_SPECIAL as for decode.
export function tokenPiece(token: i32, flags: u32 = 0): ArrayBuffer {
  const buffer = new ArrayBuffer(check(abi.token_piece(token, flags, 0, 0)));
  check(abi.token_piece(token, flags, changetype<usize>(buffer), buffer.byteLength));
  return buffer;
}

// ---- prompts ----

// Tokens for a generation to start from.
export class Prompt {
  private constructor(public readonly handle: i32) {}

  // The request's own.
  static own(): Prompt {
    return new Prompt(check(abi.prompt_own()));
  }

  // The model's chat template over JSON messages and tools (or ""); flags abi.CHAT_*.
  static chat(messages: string, tools: string = "", flags: u32 = abi.CHAT_ANSWER): Prompt {
    const m = String.UTF8.encode(messages);
    const t = String.UTF8.encode(tools);
    return new Prompt(
      check(abi.prompt_chat(changetype<usize>(m), m.byteLength, changetype<usize>(t), t.byteLength, flags))
    );
  }

  // From text; flags abi.TEXT_*.
  static text(text: string, flags: u32 = 0): Prompt {
    const bytes = String.UTF8.encode(text);
    return new Prompt(check(abi.prompt_text(changetype<usize>(bytes), bytes.byteLength, flags)));
  }

  static tokens(tokens: StaticArray<i32>): Prompt {
    return new Prompt(check(abi.prompt_tokens(changetype<usize>(tokens), tokens.length)));
  }

  // How many tokens it has.
  get length(): i32 {
    return check(abi.prompt_get_tokens(this.handle, 0, 0));
  }

  getTokens(): StaticArray<i32> {
    const out = new StaticArray<i32>(this.length);
    check(abi.prompt_get_tokens(this.handle, changetype<usize>(out), out.length));
    return out;
  }

  getText(): string {
    const buffer = new ArrayBuffer(check(abi.prompt_get_text(this.handle, 0, 0)));
    check(abi.prompt_get_text(this.handle, changetype<usize>(buffer), buffer.byteLength));
    return String.UTF8.decode(buffer);
  }

  // Starts a generation, with the request's own parameters where `options` is null.
  generate(options: Options | null = null, mode: u32 = abi.MODE_EVENTS): Generation {
    return new Generation(
      check(abi.generate(this.handle, options ? changetype<usize>(options.finished()) : 0, mode))
    );
  }

  close(): void {
    check(abi.close(this.handle));
  }
}

// What differs from the request's own parameters.
export class Options {
  private raw: abi.GenerateOptions = new abi.GenerateOptions();
  private texts: ArrayBuffer[] = [];
  private stops: StaticArray<u64> = new StaticArray<u64>(0);
  private biases: u64[] = []; // each an abi.Bias

  maxTokens(n: u32): Options {
    this.raw.max_tokens = n;
    this.raw.set |= abi.SET_MAX_TOKENS;
    return this;
  }

  // 0: the most likely token each time.
  temperature(t: f32): Options {
    this.raw.temperature = t;
    this.raw.set |= abi.SET_TEMPERATURE;
    return this;
  }

  topK(k: u32): Options {
    this.raw.top_k = k;
    this.raw.set |= abi.SET_TOP_K;
    return this;
  }

  topP(p: f32): Options {
    this.raw.top_p = p;
    this.raw.set |= abi.SET_TOP_P;
    return this;
  }

  minP(p: f32): Options {
    this.raw.min_p = p;
    this.raw.set |= abi.SET_MIN_P;
    return this;
  }

  // For tokens among the last `lastN` (0: all): repeat 1, frequency 0 and presence 0 are none.
  penalties(repeat: f32, frequency: f32, presence: f32, lastN: u32): Options {
    this.raw.repeat_penalty = repeat;
    this.raw.frequency_penalty = frequency;
    this.raw.presence_penalty = presence;
    this.raw.penalty_last_n = lastN;
    this.raw.set |= abi.SET_REPEAT_PENALTY | abi.SET_FREQUENCY_PENALTY;
    this.raw.set |= abi.SET_PRESENCE_PENALTY | abi.SET_PENALTY_LAST_N;
    return this;
  }

  // Adds to the logit of a token.
  bias(token: i32, bias: f32): Options {
    this.biases.push((<u64>reinterpret<u32>(bias) << 32) | <u64>(<u32>token));
    this.raw.set |= abi.SET_BIAS;
    return this;
  }

  // Draws with a sampler, whose state is copied, instead of the other options.
  sampler(s: Sampler): Options {
    this.raw.sampler = s.handle;
    this.raw.set |= abi.SET_SAMPLER;
    return this;
  }

  // How many tokens (1 to 64) the host may be ahead of Generation.confirm in abi.MODE_AHEAD; then it waits.
  runAhead(n: u32): Options {
    this.raw.run_ahead = n;
    return this;
  }

  seed(seed: u64): Options {
    this.raw.seed = seed;
    this.raw.set |= abi.SET_SEED;
    return this;
  }

  // Ends the answer in front of this string; up to 16 of them.
  stop(text: string): Options {
    this.texts.push(String.UTF8.encode(text));
    this.raw.set |= abi.SET_STOP;
    return this;
  }

  // Only what the grammar allows from where it stands; its state is copied.
  grammar(g: Grammar): Options {
    this.raw.grammar = g.handle;
    this.raw.set |= abi.SET_GRAMMAR;
    return this;
  }

  // abi.GENERATE_*
  flags(flags: u32): Options {
    this.raw.flags = flags;
    this.raw.set |= abi.SET_FLAGS;
    return this;
  }

  // For the host: valid as long as this object.
  finished(): abi.GenerateOptions {
    this.stops = new StaticArray<u64>(2 * this.texts.length);
    for (let i = 0; i < this.texts.length; i++) {
      this.stops[2 * i] = changetype<usize>(this.texts[i]);
      this.stops[2 * i + 1] = this.texts[i].byteLength;
    }
    this.raw.size = offsetof<abi.GenerateOptions>();
    this.raw.stop = changetype<usize>(this.stops);
    this.raw.n_stop = this.texts.length;
    this.raw.bias = this.biases.dataStart;
    this.raw.n_bias = this.biases.length;
    return this.raw;
  }
}

// ---- generations ----

const EVENTS_MAX: i32 = 64;
const TEXT_MAX: i32 = 16384;

// What has come since the last wait.
export class Batch {
  tokens: i32[] = [];
  // The text that each of them completes, which may be empty.
  texts: string[] = [];
  // All of it, with what was held back until the end.
  text: string = "";
  // How the generation ended (abi.END_*), or 0 while it goes on.
  ended: u32 = 0;
}

// A running decode.
export class Generation {
  private events: ArrayBuffer = new ArrayBuffer(EVENTS_MAX * offsetof<abi.GuestEvent>());
  private room: ArrayBuffer = new ArrayBuffer(TEXT_MAX);

  constructor(public readonly handle: i32) {}

  // Waits for events and takes all that have come; one that failed ends the program.
  wait(): Batch {
    const at = changetype<usize>(this.events);
    const n = check(abi.wait(this.handle, at, EVENTS_MAX, changetype<usize>(this.room), TEXT_MAX, -1));
    const batch = new Batch();
    let length: u32 = 0;
    for (let i = 0; i < n; i++) {
      const e = changetype<abi.GuestEvent>(at + i * offsetof<abi.GuestEvent>());
      length = e.text_at + e.text_len;
      if (e.kind == abi.EVENT_KIND_TOKEN) {
        batch.tokens.push(e.token);
        batch.texts.push(String.UTF8.decodeUnsafe(changetype<usize>(this.room) + e.text_at, e.text_len));
      } else {
        check(e.status);
        batch.ended = e.finish;
      }
    }
    batch.text = String.UTF8.decodeUnsafe(changetype<usize>(this.room), length);
    return batch;
  }

  // Waits for the end; the whole text.
  text(): string {
    let all = "";
    let ended: u32 = 0;
    while (!ended) {
      const batch = this.wait();
      all += batch.text;
      ended = batch.ended;
    }
    return all;
  }

  // In abi.MODE_AHEAD: the first n generated tokens stay, so that the host goes on. All that it is ahead must not be
  // waited for unconfirmed.
  confirm(n: u32): void {
    check(abi.confirm(this.handle, n));
  }

  // In abi.MODE_AHEAD: drops what was generated behind the first `keep` tokens, puts others there and goes on, also from
  // the end. The next wait brings what follows them.
  rewind(keep: u32, tokens: StaticArray<i32>): void {
    check(abi.rewind(this.handle, keep, changetype<usize>(tokens), tokens.length));
  }

  // Tokens charged so far.
  usage(): abi.GuestUsage {
    const out = new abi.GuestUsage();
    check(abi.usage(this.handle, changetype<usize>(out)));
    return out;
  }

  // Ends it; its end comes as an event.
  cancel(): void {
    check(abi.cancel(this.handle));
  }

  close(): void {
    check(abi.close(this.handle));
  }
}

// ---- models and the tenant's store ----

// The id of a model that the server offers under this name.
export function findModel(name: string): i32 {
  const n = String.UTF8.encode(name);
  return check(abi.model_find(changetype<usize>(n), n.byteLength));
}

// The model of text, prompts, grammars and new contexts from now on (0: the request's own); the one before.
export function useModel(id: i32): i32 {
  return check(abi.model_use(id));
}

// A value of the tenant's store, which all its requests share; null when there is no such key.
export function storeGet(key: string): ArrayBuffer | null {
  const k = String.UTF8.encode(key);
  const at = changetype<usize>(k);
  for (let room: i32 = 256; ; ) {
    const out = new ArrayBuffer(room);
    const n = abi.store_get(at, k.byteLength, changetype<usize>(out), room);
    if (n == abi.E_NOT_FOUND) return null;
    if (check(n) <= room) return out.slice(0, n);
    room = n;
  }
  return null;
}

// Sets a value, durably.
export function storePut(key: string, value: ArrayBuffer): void {
  const k = String.UTF8.encode(key);
  check(abi.store_put(changetype<usize>(k), k.byteLength, changetype<usize>(value), value.byteLength));
}

// Keys with a prefix, in order.
export function storeList(prefix: string): string[] {
  const keys: string[] = [];
  const p = String.UTF8.encode(prefix);
  const room = new ArrayBuffer(4096); // a key has at most 256 bytes
  let after = new ArrayBuffer(0);
  for (;;) {
    const at = changetype<usize>(room);
    const n = check(
      abi.store_list(changetype<usize>(p), p.byteLength, changetype<usize>(after), after.byteLength, at, 4096)
    );
    if (n == 0) return keys;
    for (let from = 0, i = 0; i < n; i++) {
      if (load<u8>(at + i) != 0) continue;
      keys.push(String.UTF8.decodeUnsafe(at + from, i - from));
      after = room.slice(from, i);
      from = i + 1;
    }
  }
  return keys;
}

// Removes a key; false when it was not there.
export function storeDelete(key: string): bool {
  const k = String.UTF8.encode(key);
  const n = abi.store_delete(changetype<usize>(k), k.byteLength);
  return n != abi.E_NOT_FOUND && check(n) >= 0;
}
