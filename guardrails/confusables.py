"""Characters that look like, or stand for, plain ASCII ones. Written for what is used to slip words past
filters, not as a full copy of Unicode's confusables (UTS #39): Cyrillic, Greek, Armenian and Cherokee
look-alikes, and punctuation. What Unicode itself decomposes, `guardrails.normalize` folds without a table.
"""

from __future__ import annotations

_PAIRS = (
    # Cyrillic
    ("АВЕЅІЈКМНОРСТУХЗԌԜӀҮ", "ABESIJKMHOPCTYX3GWIY"),
    ("авгеѕіјкмнорстухԁһԛԝӏүпѵѡь", "abresijkmhopctyxdhqwlynvwb"),
    # Greek
    ("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧϹͿ", "ABEZHIKMNOPTYXCJ"),
    ("αβγεηικνορστυχωϲϳτ", "abyenikvopotuxwcjt"),
    # Armenian
    ("օսհոցզքյՕՏԼՍ", "ouhngqfjOSLU"),
    # Cherokee
    ("ᎪᏴᏟᎠᎬᎨᎻᎥᎫᏦᏞᎷᏢᏒᏚᎢᏙᏔᏃ", "ABCDEFHIJKLMPRSTVWZ"),
    # Latin letters without a decomposition
    ("ıłøđħŧɑɡɩɪʀʏʙɢʜʟɴ", "ilodhtagiirybghln"),
    ("ŁØĐĦŦƉ", "LODHTD"),
    # Punctuation
    ("‐‑‒–—―−﹘", "--------"),
    ("‘’‚‛′ʹʼˈ´", "'''''''''"),
    ("“”„‟″", '"""""'),
    ("。、，：；！？（）［］", ".,,:;!?()[]"),
    ("⁄∕∶꞉⁎∗∼․‧", "//::**~.."),
)
_WIDER = {"æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ß": "ss", "ẞ": "SS", "þ": "th", "Þ": "TH"}

LOOK_ALIKES: dict[str, str] = _WIDER | {
    look: plain
    for looks, plains in _PAIRS
    for look, plain in zip(looks, plains, strict=True)
    if look != plain
}
LOOK_ALIKES.pop("`", None)  # ASCII stays as it is
"""From a character to the ASCII text that it is taken for."""

FILLERS = frozenset("\u115f\u1160\u3164\uffa0\u034f\u17b4\u17b5")
"""Letters and marks by their category, but with nothing to see."""
