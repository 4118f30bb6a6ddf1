"""Writes the trained guide as GGUF: architecture qwen3moe, Q8_0, with tokenizer and chat template.

python -m guide.export build/guide flashmoe/assets/guide.gguf
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import gguf
import numpy as np

from guide.tokenizer import PATH as TOKENIZER
from guide.tokenizer import SPECIALS, TEMPLATE

LAYER = {
    "attn_norm.weight": "attn_norm.weight",
    "attn.q.weight": "attn_q.weight",
    "attn.k.weight": "attn_k.weight",
    "attn.v.weight": "attn_v.weight",
    "attn.o.weight": "attn_output.weight",
    "attn.q_norm.weight": "attn_q_norm.weight",
    "attn.k_norm.weight": "attn_k_norm.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "moe.router.weight": "ffn_gate_inp.weight",
    "moe.gate": "ffn_gate_exps.weight",
    "moe.up": "ffn_up_exps.weight",
    "moe.down": "ffn_down_exps.weight",
}
PLAIN = ("attn_norm", "attn_q_norm", "attn_k_norm", "ffn_norm", "ffn_gate_inp", "output_norm")
"""Tensors that stay float32: small, and the router's ties matter."""


def load_state(folder: Path) -> dict[str, np.ndarray]:
    """float32 arrays from the parts that `guide.train` wrote."""
    state: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("state.part*.npz")):
        with np.load(path) as part:
            for name in part.files:
                state[name] = (part[name].astype(np.uint32) << 16).view(np.float32)
    if not state:
        raise SystemExit(f"{folder} holds no state.part*.npz: train first (python -m guide.train --out {folder})")
    return state


def export(folder: Path, target: Path, quant: str = "Q8_0", sharpen: float = 2.0) -> int:
    """Writes the file and returns its size in bytes.

    `sharpen` scales the last norm, and with it every logit: the guide then draws from its sure answers at the app's
    default temperature, which was chosen for large models. Greedy answers don't change.
    """
    shape = json.loads((folder / "shape.json").read_text())
    state = load_state(folder)
    writer = gguf.GGUFWriter(str(target), "qwen3moe")
    writer.add_name("flashmoe guide")
    writer.add_description("The demo model of flashmoe-tui: answers questions about the program and about MoE models.")
    writer.add_license("mit")
    writer.add_size_label(f"{shape['n_expert']}x0.4M")
    writer.add_context_length(shape["n_ctx"])
    writer.add_block_count(shape["n_layer"])
    writer.add_embedding_length(shape["n_embd"])
    writer.add_feed_forward_length(shape["n_ff"] * shape["n_expert_used"])
    writer.add_head_count(shape["n_head"])
    writer.add_head_count_kv(shape["n_head_kv"])
    writer.add_key_length(shape["head_dim"])
    writer.add_value_length(shape["head_dim"])
    writer.add_rope_freq_base(shape["rope_base"])
    writer.add_layer_norm_rms_eps(shape["eps"])
    writer.add_expert_count(shape["n_expert"])
    writer.add_expert_used_count(shape["n_expert_used"])
    writer.add_expert_feed_forward_length(shape["n_ff"])
    kind = gguf.GGMLQuantizationType[quant]
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{quant}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_tokenizer(writer, shape["n_vocab"])

    def add(name: str, array: np.ndarray) -> None:
        if name.removeprefix("blk.").split(".")[-2] in PLAIN:
            writer.add_tensor(name, array.astype(np.float32))
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)

    add("token_embd.weight", state["embed.weight"])
    experts, ff, width = shape["n_expert"], shape["n_ff"], shape["n_embd"]
    for layer in range(shape["n_layer"]):
        for source, name in LAYER.items():
            array = state[f"blocks.{layer}.{source}"]
            if source in ("moe.gate", "moe.up"):
                array = array.reshape(experts, ff, width)
            elif source == "moe.down":
                array = np.ascontiguousarray(array.reshape(width, experts, ff).transpose(1, 0, 2))
            add(f"blk.{layer}.{name}", array)
    add("output_norm.weight", state["norm.weight"] * np.float32(sharpen))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target.stat().st_size


def add_tokenizer(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    """Tokens, merges, specials and the chat template; the vocabulary is padded to n_vocab with unused tokens."""
    raw = json.loads(TOKENIZER.read_text())
    vocab = {**raw["model"]["vocab"], **{t["content"]: t["id"] for t in raw["added_tokens"]}}
    tokens = [f"<|unused{i}|>" for i in range(n_vocab)]
    types = [int(gguf.TokenType.UNUSED)] * n_vocab
    for token, index in vocab.items():
        tokens[index], types[index] = token, int(gguf.TokenType.NORMAL)
    for token in SPECIALS:
        types[vocab[token]] = int(gguf.TokenType.CONTROL)
    merges = [m if isinstance(m, str) else " ".join(m) for m in raw["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(vocab["<|im_end|>"])
    writer.add_eot_token_id(vocab["<|im_end|>"])
    writer.add_pad_token_id(vocab["<|endoftext|>"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what guide.train wrote")
    parser.add_argument("target", type=Path)
    parser.add_argument("--quant", default="Q8_0")
    parser.add_argument("--sharpen", type=float, default=2.0, help="scale of the logits")
    args = parser.parse_args()
    size = export(args.folder, args.target, args.quant, args.sharpen)
    print(f"{args.target}: {size:,} bytes ({size / 2**20:.2f} MiB)")


if __name__ == "__main__":
    main()
