"""Character sets as files misspell them, each with a patient's ID as a person types it and its bytes in the file."""

from __future__ import annotations

MISSPELT: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        ("ISO IR 192", "ISO-IR 192", "ISO_IR_192", "ISO_IR192", "ISO-IR-192", "iso_ir 192", "ISO_IR  192"),
        ("Müller-Ω7", "utf-8"),
    ),
    **dict.fromkeys(("UTF8", "UTF-8", "utf-8", "\\ISO IR 192", "no such set"), ("Müller-Ω7", "utf-8")),
    **dict.fromkeys(
        ("ISO IR 100", "ISO-IR 100", "ISO_IR_100", "iso_ir 100", "ISO 2022-IR 100", "ISO 8859-1", "latin1"),
        ("Müller-7", "latin-1"),
    ),
    **dict.fromkeys(("ISO IR 144", "ISO-8859-5", "iso 2022 ir 144"), ("Иванов-7", "iso8859-5")),
    **dict.fromkeys(("ISO IR 126", "ISO 2022_IR 126", "iso2022ir126"), ("Δ-7", "iso8859-7")),
    **dict.fromkeys(("ISO IR 13", "Shift_JIS"), ("ﾔﾏﾀﾞ-7", "shift_jis")),
    **dict.fromkeys(("ISO_IR 149", "ISO-2022-IR 149", "EUC-KR"), ("김희중-7", "euc_kr")),
    **dict.fromkeys(("GB 18030", "gb-18030", "gb18030"), ("王小东-7", "gb18030")),
    **dict.fromkeys(("gbk", "GB2312", "ISO IR 58"), ("王小东-7", "gb2312")),
    **dict.fromkeys(
        ("ISO_IR 87", "\\ISO_2022_IR_87", "\\ISO IR 87", "ISO 2022-IR 6\\ISO2022 IR 87"), ("山田五予-7", "iso2022_jp")
    ),
}
