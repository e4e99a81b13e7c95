"""Texts on which tokenizers that claim to be the same come apart, if they do: what gigatoken must pass before it is used."""

from __future__ import annotations

from collections.abc import Iterator

_WORDS = (
    "Hello, world! It's 5 o'clock; they'll've said: \"don't\" -- isn't it?",
    "IT'S THEY'LL I'M YOU'RE WE'VE HE'D 'S 'T 'lL 'Re x'sy 'ſ ' s",
    "the quick brown fox jumps over the lazy dog. The Quick Brown FOX! theQuickBrownFOXjumps",
    "naïve façade coöperate Ångström Straße STRASSE ﬁne ﬀ Æsop œuvre ĳ İstanbul ıI",
    "Привет, мир! Ёлки-палки. Здравствуйте",
    "Γειά σου Κόσμε ΑΣ ας ὀδυσσεύς",
    "שלום עולם בְּרֵאשִׁית",
    "مرحبا بالعالم السَّلامُ عَلَيْكُم لا ﷺ ۱۲۳٤٥",
    "नमस्ते दुनिया क्षत्रिय १२३",
    "สวัสดีชาวโลก ๑๒๓",
    "你好，世界。これはテストです。안녕하세요 세계 漢字かなカナｶﾅ　全角ＡＢＣ１２３",
    "한국어 각 각 가",
    "Ⅷ ½ ² ₃ ① ㊿ ٣ 𝟘𝟙 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ⅒ 〇",
    "e\u0301 é a\u0308\u0323 a\u0323\u0308 Å Å Ω Ω \u0344 q\u0307\u0323",
    "z̸̧̙͚̘͇͔͂̎̒a̷̛͇͓͆l̸̢̖̈́g̷͎̈o̵̧̔",
    "🙂👍🏽👩‍👩‍👧‍👦🏳️‍🌈🇩🇪🇫🇷🧑🏿‍🚀 ❤️ ☃ ©® ™ 1️⃣ #️⃣ 🫨🪿",
    "👩\u200d👩\u200d\u200d👧 \u200d \ufe0f \u200c می\u200cخواهم",
    "x = [i**2 for i in range(10) if i % 3 != 0]  # comment\n\treturn {'a': 1, \"b\": [2.5e-10, 0xFF]}",
    '#include <stdio.h>\nint main(void) { printf("%d\\n", a->b[i++] && !c || ~d); return 0; }\r\n',
    "<html lang=\"en\"><p class='x'>a &amp; b<br/></p><!-- c --></html>",
    "SELECT * FROM t WHERE a<>b AND c>=10; -- ok\n/* x */ //y ///z",
    "https://example.org/a/b?c=d&e=%20f#g user@example.org C:\\Users\\x /usr/lib/*.so.1",
    "$E=mc^2$ \\frac{a}{b} \\sum_{i=0}^{n} x_i \\alpha ∑∫√∞≠≤ α∈ℝ → ⇒",
    "| a | b |\n|---|:-:|\n| 1 | 2 |\n\n- x\n  - y\n    1. z\n```py\npass\n```",
    "0 1 12 123 1234 12345 1234567890 3.14159 1,000,000 1e10 0x1F 10% $5.00 1st 2nd a1b22c333",
    "...!!!??? ---- ==== ____ **** ((())) [[]] {{}} <<>> «» “” ‘’ „“ … – — ‐ ‑ · • §",
    "</s> <s> <unk> <pad> <eos> <bos> <mask> [CLS] [SEP] [PAD] [UNK] [MASK] <0x0A> <0x00> <0xFF>",
    "<|endoftext|><|im_start|>user\nhi<|im_end|>\n<image><|image_pad|><|pad|><|eot_id|><|endoftext|",
    "Ġhello Ċ ĉ Âł âĢ ▁hello ▁▁ ▁ _hello ##ing @@ing </w>",
    "<|endoftext|>  <|endoftext|>\n</s></s>a</s> b <image>c <image> <|image|> < image > <|pad|",
)

#: characters that are tried alone, doubled, and between letters, digits and white space
_CHARACTERS = (
    "".join(map(chr, range(0x21)))  # control characters, NUL among them, and white space
    + "\x7f\x80\x85\x9f\xa0\xad\u034f\u061c\u1680\u180e\u2000\u2003\u2009\u200a\u200b\u200c\u200d\u200e\u200f\u2028\u2029"
    + "\u202a\u202e\u202f\u205f\u2060\u2066\u3000\ufeff\ufe0f\ufffc\ufffd\ufffe\uffff"
    + "\U0001fffe\U000e0001\U000e0061\U0010ffff"
    + "\u0300\u0301\u0345\u0488\u05bf\u0903\u0e31\u0e33\u1160\u11a8\u20dd\u3099\u302a\ua66f"
    + "'\"`´’ʼ_-./\\<>|&#%$€^~@▁Ġ²٣ⅧↀǅʰªßẞſKÅıİĿﬀ中々〆ー｡"
    + "\ue000\U000f0000\U00100000"  # private use
    + "\u0378\u2fe0\U0001ffff"  # not assigned
    # of younger versions of Unicode, which libraries learn of at different times: 13, 14, 15, 15.1, 16 and 17
    + "\ua7c7\U00030000\u061d\u0870\ua7c0\U00011f02\U00031350\U0002ebf0\u1c89\ua7cb\U00010d40\U00010d4a\U0001cc00\U000323b0"
)

_RUNS = (*"aA1 \n\t\u3000\xa0!-=é中🙂\u0301\0", "ab", "\r\n", " \n", "\n ")


def check_texts() -> Iterator[str]:
    """A few hundred texts, about 30 KB; the same at each call."""
    yield ""
    yield from _WORDS
    for word in _WORDS[:12]:
        yield f" {word}\n"
        yield f"\n\n  {word}   "
    for c in _CHARACTERS:
        yield c
        yield f"a{c}b {c}{c} 1{c}2{c} '{c}s {c}A\n{c} "
    for run in _RUNS:
        for length in (2, 3, 4, 7, 8, 17):
            yield f"{run * length}x {run * length}"
    yield "a" * 5000
    yield "ab" * 500
    yield " " * 1000
    yield "\n" * 300
    yield "1234567890" * 30
    yield "🙂" * 100
    yield "中" * 300
    yield "x" * 64 + " " * 64 + "y" * 65
    yield " ".join(_WORDS[:6])
