// stream: hands the answer on as it comes, counts its tokens, and signs with what it counted.
import { Prompt, emit, input } from "realm-guest";

export function realm_main(): i32 {
  const model = input("model");
  const prompt = Prompt.own();
  const answer = prompt.generate();
  let tokens = 0;
  for (let ended: u32 = 0; !ended; ) {
    const batch = answer.wait();
    tokens += batch.tokens.length;
    emit(batch.text);
    ended = batch.ended;
  }
  emit(`\n\n-- ${model ? model : "a model"}: ${prompt.length} tokens in, ${tokens} out`);
  return 0;
}
