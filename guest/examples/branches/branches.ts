// branches: the three most likely beginnings of the answer, each with how it goes on; and how often the tenant asked.
import { Context, Options, Prompt, abi, decode, emit, storeGet, storePut } from "realm-guest";

export function realm_main(): i32 {
  const trunk = Context.create();
  trunk.appendPrompt(Prompt.own());
  const top = trunk.forward(new StaticArray<i32>(0)).top(0, 3);
  for (let i = 0; i < top.length; i++) {
    const first = StaticArray.fromArray<i32>([top[i].token]);
    const branch = trunk.fork();
    branch.append(first);
    const answer = branch.generate(new Options().maxTokens(8).temperature(0));
    const nats = <i32>(top[i].logprob * 1000);
    emit(`${i + 1}. ${nats}/1000 nats: ${decode(first, abi.TEXT_SPECIAL)}${answer.text()}\n`);
  }
  const stored = storeGet("asked");
  const asked = stored ? stored : new ArrayBuffer(1);
  const times = load<u8>(changetype<usize>(asked)) + 1;
  store<u8>(changetype<usize>(asked), times);
  storePut("asked", asked);
  emit(`asked ${times} times`);
  return 0;
}
