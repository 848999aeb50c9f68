"""Texts on which two tokenizers that differ give different tokens: what rules of splitting and bytes disagree about."""

TEXTS = (
    "Hello world, how are you today?",
    "In 1995 they counted 12345678 sheep, 3.14159 goats and 7,000,000 hens on 2024-02-29.",
    "two  spaces,   three,    four; a tab\there, and two\t\tthere   ",
    " a space first",
    "line one\nline two\n\nline four\n\n\n   indented\r\nwindows\r\n\r\n",
    "I'm sure they'll say it's what WE'D've done; DON'T, you'RE",
    "Crème brûlée, naïve façade, señor, Zürich, Ångström, œuvre, straße",
    "emoji 😀😃👩‍👩‍👧 🏳️‍🌈 and 🇩🇪 flags ❤️",
    "def f(x: int) -> list[str]:\n    return [str(i**2) for i in range(x)]  # done\n\n\tif (a != b && c) { x += 1; }",
    "https://example.org/a_b-c?q=1&r=%20#top  user@example.org  C:\\temp\\x.txt",
    "你好，世界。今天天气很好！ 日本語のテキスト 한국어 텍스트",
    "Привет, мир! Γειά σου Κόσμε. مرحبا بالعالم שלום नमस्ते ไทย",
    "camelCase PascalCase SCREAMING_CASE snake_case HTTPServer2Go iPhone15 x86_64",
    "½ ² Ⅷ ① ٣ ३ — – … “quoted” ‘single’ «guillemets» £€¥ ±×÷ ≤≥ ∑∫",
    "!!!???...---***///\\\\\\ (((nested))) [[x]] {{y}} <<z>> ~~ ^^ || @@ ## $$ %%",
)
"""Composed Unicode (NFC): llama.cpp normalises nothing, so that decomposed accents are other tokens there."""
