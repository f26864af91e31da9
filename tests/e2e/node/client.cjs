// The official client of Node against a running server: BASE_URL, ALPHA and BETA (keys) come from the environment.
const assert = require('node:assert');
const { OpenAI, AuthenticationError, BadRequestError, NotFoundError, APIUserAbortError } = require('openai');

const client = (apiKey) => new OpenAI({ baseURL: process.env.BASE_URL, apiKey, maxRetries: 0, timeout: 60000 });
const alpha = client(process.env.ALPHA);
const beta = client(process.env.BETA);
const messages = [{ role: 'user', content: 'What is the capital of France? Answer in one sentence.' }];
const chat = { model: 'smollm2', messages, temperature: 0, max_tokens: 24 };

const checks = {
  async models() {
    const ids = [];
    for await (const m of alpha.models.list()) ids.push(m.id);
    assert.deepStrictEqual(ids, ['smollm2']);
    assert.strictEqual((await alpha.models.retrieve('smollm2')).owned_by, 'realm');
  },
  async chat() {
    const r = await alpha.chat.completions.create(chat);
    assert.match(r.choices[0].message.content, /Paris/);
    assert.strictEqual(r.choices[0].finish_reason, 'stop');
    assert.strictEqual(r.usage.total_tokens, r.usage.prompt_tokens + r.usage.completion_tokens);
    assert.match(r._request_id, /^req_/);
  },
  async stream() {
    const stream = await alpha.chat.completions.create({ ...chat, stream: true, stream_options: { include_usage: true } });
    let text = '', usage = null, n = 0;
    for await (const chunk of stream) {
      n++;
      text += chunk.choices[0]?.delta?.content ?? '';
      if (chunk.usage) usage = chunk.usage;
    }
    assert.match(text, /Paris/);
    assert.ok(n > 5 && usage.completion_tokens > 5);
    assert.strictEqual(text, (await alpha.chat.completions.create(chat)).choices[0].message.content);
  },
  async streamHelper() {
    const runner = alpha.chat.completions.stream(chat);
    let deltas = '';
    runner.on('content', (delta) => (deltas += delta));
    const final = await runner.finalChatCompletion();
    assert.strictEqual(final.choices[0].message.content, deltas);
  },
  async completions() {
    const r = await alpha.completions.create({ model: 'smollm2', prompt: 'The capital of France is', temperature: 0, max_tokens: 4, logprobs: 1, echo: true });
    assert.match(r.choices[0].text, /^The capital of France is.*Paris/);
    assert.strictEqual(r.choices[0].logprobs.tokens.join(''), r.choices[0].text);
    const ids = await alpha.completions.create({ model: 'smollm2', prompt: [504, 3575], max_tokens: 1 });
    assert.strictEqual(ids.usage.prompt_tokens, 2);
  },
  async twoTenantsAtOnce() {
    const [a, b] = await Promise.all([alpha.chat.completions.create(chat), beta.chat.completions.create(chat)]);
    assert.match(a.choices[0].message.content, /Paris/);
    assert.match(b.choices[0].message.content, /PARIS/);
  },
  async manyAtOnce() {
    const all = await Promise.all(Array.from({ length: 10 }, () => alpha.chat.completions.create(chat)));
    assert.strictEqual(new Set(all.map((r) => r.choices[0].message.content)).size, 1);
  },
  async errors() {
    await assert.rejects(client('wrong').models.list(), AuthenticationError);
    await assert.rejects(alpha.chat.completions.create({ ...chat, model: 'other' }), (e) => e instanceof NotFoundError && e.code === 'model_not_found');
    await assert.rejects(alpha.chat.completions.create({ ...chat, temperature: 9 }), (e) => e instanceof BadRequestError && e.param === 'temperature');
    await assert.rejects(alpha.chat.completions.create({ ...chat, messages: [{ role: 'user', content: [{ type: 'image_url', image_url: { url: 'data:,' } }] }] }),
      (e) => e instanceof BadRequestError && e.param === 'messages[0].content[0].type');
  },
  async abort() {
    const stop = new AbortController();
    const stream = await alpha.chat.completions.create({ ...chat, max_tokens: 2000, ignore_eos: true, stream: true }, { signal: stop.signal });
    let n = 0;
    await assert.rejects(async () => {
      for await (const _ of stream) if (++n === 5) stop.abort();
      if (stop.signal.aborted) throw new APIUserAbortError();
    }, APIUserAbortError);
    assert.ok(n < 100);
  },
};

(async () => {
  let failed = 0;
  for (const [name, check] of Object.entries(checks)) {
    try {
      await check();
      console.log(`ok ${name}`);
    } catch (e) {
      failed++;
      console.log(`FAIL ${name}: ${e.stack}`);
    }
  }
  process.exit(failed ? 1 : 0);
})();
