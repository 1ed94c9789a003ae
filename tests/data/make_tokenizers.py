#!/usr/bin/env python3
"""Writes the small tokenizers of tests/data/tokenizers and what their own libraries make of some texts.

  pip install tokenizers==0.23.3 sentencepiece==0.2.3 tiktoken==0.14.0
  python make_tokenizers.py ../../examples/needle/northanger_abbey.txt tokenizers

  byte_bpe/tokenizer.json      byte-level BPE (tokenizers), with tokenizer_config.json
  tiktoken/tokenizer.model     the same vocabulary as tiktoken ranks, with GLM-4's special tokens
  sp_bpe/, sp_unigram/         SentencePiece models; the first with byte pieces, the second with a character map
  cases.json                   ids by `tokenizers` for each way of splitting, by `tiktoken` and by `sentencepiece`
"""
import base64, json, os, sys
import sentencepiece as spm
import tiktoken
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

book, out = sys.argv[1:3]
text = open(book, encoding="utf-8").read()[2000:90000]
extra = "Élan vital, naïve façade. Über 100 Öfen: 3.14159, 1,000,000.\nαβγ 你好，世界 🙂🙂\n" * 40
TEXTS = [
    "", " ", "Hello, World!", "It isn't what WE'LL say; I'm sure they'd've gone.", "In 2024 there were 48213 cats.\n\n  x\ty",
    "   leading", "trailing   ", "a\r\nb\n\n\nc  d", "Élan façade αβγ 你好，世界 🙂", "1,000,000.50%", "e\u0301 decomposed, ﬁne Ａ",
    "fn main() {\n    println!(\"{}\", 1 << 20);\n}\n", "\u2581under\u2581", "to be<|end|> and more", "<s>more", "\x00\x7f\u200b\ufeff",
]
os.makedirs(out, exist_ok=True)
for name in ["byte_bpe", "tiktoken", "sp_bpe", "sp_unigram"]:
    os.makedirs(f"{out}/{name}", exist_ok=True)

# Byte-level BPE.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CASES = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
DEEPSEEK = ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"]
DEEPSEEK3 = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""]
byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
split = lambda *p: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(x), "isolated") for x in p] + [byte_level])
PRE = {"gpt-2": split(GPT2), "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
           pre_tokenizers.ByteLevel(add_prefix_space=False)]),
       "qwen2": split(GPT4 % ""), "llama-bpe": split(GPT4 % "{1,3}"), "glm4": split(GPT4 % "{1,3}"), "tekken": split(CASES),
       "deepseek-coder": split(*DEEPSEEK), "deepseek-v3": split(*DEEPSEEK3)}
tok = Tokenizer(models.BPE())
tok.pre_tokenizer, tok.decoder = PRE["llama-bpe"], decoders.ByteLevel()
tok.train_from_iterator([text, extra], trainers.BpeTrainer(vocab_size=700, show_progress=False,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
tok.add_special_tokens(["<s>", "</s>", "<|end|>"])
tok.add_tokens([AddedToken("<think>", normalized=False, special=False)])
tok.save(f"{out}/byte_bpe/tokenizer.json", pretty=False)
json.dump({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": True}, open(f"{out}/byte_bpe/tokenizer_config.json", "w"))
cases = {"texts": TEXTS, "byte_bpe": {}}
for name, pre in PRE.items():
    tok.pre_tokenizer = pre
    tok.normalizer = normalizers.NFC() if name == "qwen2" else normalizers.Sequence([])
    tok.model.ignore_merges = name in ("llama-bpe", "tekken")
    cases["byte_bpe"][name] = [tok.encode(t, add_special_tokens=False).ids for t in TEXTS]

# The same as tiktoken ranks.
vocab = json.loads(tok.to_str())["model"]["vocab"]
byte_of = {c: b for b, c in enumerate(
    [chr(b) if chr(b) in pre_tokenizers.ByteLevel.alphabet() and (33 <= b <= 126 or 161 <= b <= 172 or b >= 174) else None for b in range(256)]) if c}
rest = [b for b in range(256) if b not in byte_of.values()]
byte_of.update({chr(256 + i): b for i, b in enumerate(rest)})
ranks = {bytes(byte_of[c] for c in t): i for t, i in vocab.items()}
with open(f"{out}/tiktoken/tokenizer.model", "w") as f:
    for b, i in sorted(ranks.items(), key=lambda x: x[1]):
        f.write(f"{base64.b64encode(b).decode()} {i}\n")
special = {t: len(ranks) + i for i, t in enumerate(["<|endoftext|>", "[gMASK]", "<sop>", "<s>", "<|end|>"])}
json.dump({"added_tokens_decoder": {str(i): {"content": t, "special": True, "lstrip": False, "rstrip": False} for t, i in special.items()},
           "eos_token": "<|endoftext|>", "tokenizer_class": "ChatGLM4Tokenizer"}, open(f"{out}/tiktoken/tokenizer_config.json", "w"))
enc = tiktoken.Encoding("small", pat_str=GPT4 % "{1,3}", mergeable_ranks=ranks, special_tokens=special)
cases["tiktoken"] = [enc.encode(t, allowed_special="all") for t in TEXTS]

# SentencePiece. Texts are cut at special tokens by hand, as every engine does before it calls the library.
open("corpus.tmp", "w").write(text + extra)
common = dict(input="corpus.tmp", num_threads=1, minloglevel=2, max_sentence_length=100000, bos_id=1, eos_id=2, unk_id=0)
spm.SentencePieceTrainer.train(**common, model_prefix=f"{out}/sp_bpe/tokenizer", model_type="bpe", vocab_size=700, byte_fallback=True,
    normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, user_defined_symbols=["<|end|>"])
rules = "\n".join(["FB01\t66 69", "FF21\t41", "9\t20", "A\t20", "65 301\te9", "200B\t"])
open("rules.tmp", "w").write(rules + "\n")
spm.SentencePieceTrainer.train(**common, model_prefix=f"{out}/sp_unigram/tokenizer", model_type="unigram", vocab_size=400,
    normalization_rule_tsv="rules.tmp", character_coverage=0.9995)
for name in ["sp_bpe", "sp_unigram"]:
    sp = spm.SentencePieceProcessor(model_file=f"{out}/{name}/tokenizer.model")
    cases[name] = {"ids": [sp.encode(t) for t in TEXTS], "pieces": [
        [sp.id_to_piece(i), sp.get_score(i), 2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else
         4 if sp.id_to_piece(i) == "<|end|>" else 1] for i in range(sp.get_piece_size())]}
    os.remove(f"{out}/{name}/tokenizer.vocab")
cases["sp_unigram"].pop("pieces")
json.dump(cases, open(f"{out}/cases.json", "w"), ensure_ascii=False)
os.remove("corpus.tmp"); os.remove("rules.tmp")
