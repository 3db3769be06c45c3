"""A small model with a routed tokenizer, as a folder; and llama.cpp in a process of its own."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.convert import save_pretrained
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.tokenizer import files, routed

ENGLISH = [
    "The routed tokenizer cuts a text into runs of one script, and each expert merges its own.\n",
    "def encode(text):\n    return [token for run in route(text) for token in merge(run)]\n",
    "Reading a page of help, the reader sees the window, the file, the table and the menu.\n",
]
TEXTS = {
    "en": ENGLISH * 3,
    "zh": ["文档窗口中的表格和文件，在文档窗口的菜单里打开文件。\n"] * 3,
    "ja": ["ファイルのメニューでドキュメントのウィンドウを開きます。\n"] * 3,
    "ko": ["문서 창의 메뉴에서 파일을 열고 문서 창의 표를 봅니다.\n"] * 3,
    "ru": ["Токенизатор делит текст на отрезки одной письменности.\n"] * 3,
}
# In a process of its own, which ends without the destructors of this binding: they crash.
LLAMA_CPP = """
import json, os, sys
from cyllama.llama import llama_cpp as engine
path, texts, new = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
engine.ggml_backend_load_all()
options = engine.LlamaModelParams()
options.n_gpu_layers = 0
model = engine.LlamaModel(path, options)
greedy = engine.LlamaSampler(engine.LlamaSamplerChainParams())
greedy.add_greedy()
answers = []
for text in texts:
    options = engine.LlamaContextParams()
    options.n_ctx, options.n_threads, options.n_threads_batch = 256, 1, 1
    options.type_k = options.type_v = 0  # float32: keys and values in float16 turn near ties
    options.flash_attn_type = 0  # off, for the same reason
    context = engine.LlamaContext(model, options)
    ids = list(model.get_vocab().tokenize(text, True, False))
    step = list(ids)
    for _ in range(new):
        context.decode(engine.llama_batch_get_one(step, len(ids) - len(step)))
        step = [greedy.sample(context, -1)]
        ids += step
    answers.append(ids)
print(json.dumps(answers), flush=True)
os._exit(0)
"""


@pytest.fixture(scope="session")
def tokenizer() -> routed.RoutedTokenizer:
    return routed.train(TEXTS, 560, min_tokens_per_expert=16)


@pytest.fixture(scope="session")
def model(tokenizer: routed.RoutedTokenizer) -> MoxinForCausalLM:
    config = MoxinConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=48,
        max_position_embeddings=128,
        initializer_range=0.3,  # wide, so that no two logits are nearly equal
        pad_token_id=3,
    )
    return MoxinForCausalLM(config, generator=torch.Generator().manual_seed(0)).eval()


@pytest.fixture(scope="session")
def folder(
    model: MoxinForCausalLM,
    tokenizer: routed.RoutedTokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    path = tmp_path_factory.mktemp("small model")
    save_pretrained(model, path)
    files.save(tokenizer, path)
    return path


@pytest.fixture(scope="session")
def llama_cpp():
    """(file, texts, number of tokens) to the ids of each text and of its greedy continuation."""
    if importlib.util.find_spec("cyllama") is None:
        pytest.skip("needs llama.cpp: pip install cyllama (in the extra dev)")

    def answer(path: Path, texts: list[str], new: int) -> list[list[int]]:
        words = [sys.executable, "-c", LLAMA_CPP, str(path), json.dumps(texts), str(new)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    return answer
