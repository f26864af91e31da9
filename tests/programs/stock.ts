// AssemblyScript with its own runtime: garbage collection, Math.random, Date.now, console.log, failing assertions.
// @ts-ignore: decorator
@external("realm", "emit")
declare function emit(text: usize, len: usize): i32;

// @ts-ignore: decorator
@external("realm", "input")
declare function input(name: usize, nameLen: usize, out: usize, max: usize): i32;

function say(text: string): void {
  const bytes = String.UTF8.encode(text);
  emit(changetype<usize>(bytes), bytes.byteLength);
}

export function realm_main(): i32 {
  let kept = "";
  for (let i = 0; i < 2000; i++) kept = (kept + i.toString()).slice(-20); // garbage
  console.log("printed");
  const map = new Map<string, i32>();
  map.set("answer", 42);
  say(`kept=${kept} answer=${map.get("answer")} random=${Math.random() < 1} year=${new Date(Date.now()).getUTCFullYear() > 2024}`);
  const name = String.UTF8.encode("user");
  const out = new ArrayBuffer(64);
  const n = input(changetype<usize>(name), name.byteLength, changetype<usize>(out), 64);
  assert(n != 4, "asked to");
  return 0;
}
