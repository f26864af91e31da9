#!/usr/bin/env python3
"""Writes small model files beside this file with the reference Python package of the format.

    pip install gguf==0.19.0 numpy && python3 tests/data/gguf/generate.py

    all-types.gguf   every value type, arrays of them, a nested array, tensors of several types, alignment 64
    version2.gguf    the same bytes marked version 2 (the two versions differ in byte order rules only)
    llama.gguf       metadata as a llama model has it, with a tokenizer of 8 tokens; no useful weights
"""
import pathlib

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, quants

HERE = pathlib.Path(__file__).parent


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_quantised(writer, name, shape, kind):
    values = (np.arange(np.prod(shape), dtype=np.float32).reshape(shape) % 61 - 30) / 8
    writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)


def all_types():
    path = HERE / "all-types.gguf"
    w = GGUFWriter(path, "test")
    w.add_custom_alignment(64)
    w.add_uint8("t.u8", 200)
    w.add_int8("t.i8", -100)
    w.add_uint16("t.u16", 60000)
    w.add_int16("t.i16", -30000)
    w.add_uint32("t.u32", 4000000000)
    w.add_int32("t.i32", -2000000000)
    w.add_uint64("t.u64", 2**64 - 1)
    w.add_int64("t.i64", -2**63)
    w.add_float32("t.f32", 0.1)
    w.add_float64("t.f64", 1e300)
    w.add_bool("t.true", True)
    w.add_bool("t.false", False)
    w.add_string("t.string", "Grüße, \u4e16\u754c\n\0end")
    w.add_key_value("t.empty", "", GGUFValueType.STRING)  # add_string leaves empty ones out
    w.add_array("t.strings", ["", "a", "\u00e9\u00e8", "x" * 300])
    w.add_array("t.ints", [-1, 0, 2147483647])
    w.add_array("t.floats", [0.5, -2.0])
    w.add_array("t.bools", [True, False, True])
    w.add_key_value("t.bytes", b"\x00\x7f\xff", GGUFValueType.ARRAY, sub_type=GGUFValueType.UINT8)
    w.add_array("t.nested", [[1, 2], [3]])
    w.add_tensor("vector", np.arange(7, dtype=np.float32))
    w.add_tensor("matrix.f16", np.arange(12, dtype=np.float16).reshape(3, 4))
    w.add_tensor("cube", np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5))
    add_quantised(w, "q8", (2, 64), GGMLQuantizationType.Q8_0)
    add_quantised(w, "q4", (3, 32), GGMLQuantizationType.Q4_1)
    finish(w)
    data = bytearray(path.read_bytes())
    data[4] = 2
    (HERE / "version2.gguf").write_bytes(data)


def llama():
    w = GGUFWriter(HERE / "llama.gguf", "llama")
    w.add_name("tiny \"test\" \\ model")
    w.add_block_count(2)
    w.add_context_length(128)
    w.add_embedding_length(32)
    w.add_feed_forward_length(64)
    w.add_head_count(4)
    w.add_head_count_kv(2)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_vocab_size(8)
    w.add_tokenizer_model("llama")
    w.add_tokenizer_pre("default")
    w.add_token_list(["<unk>", "<s>", "</s>", "a", "b", "\u2581c", "<0x0A>", "\"q\\"])
    w.add_token_scores([0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0])
    w.add_token_types([2, 3, 3, 1, 1, 1, 6, 1])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    add_quantised(w, "token_embd.weight", (8, 32), GGMLQuantizationType.Q8_0)
    for layer in range(2):
        add_quantised(w, "blk.%d.attn_q.weight" % layer, (32, 32), GGMLQuantizationType.Q4_0)
        w.add_tensor("blk.%d.attn_norm.weight" % layer, np.ones(32, dtype=np.float32))
    finish(w)


if __name__ == "__main__":
    all_types()
    llama()
