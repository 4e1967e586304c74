"""What a captioner is asked by mode, and what becomes of its answers.

Pure text. What the trigger word is to stand for must not be said in other words, or those words learn it instead: the
look of a character or a product, the manner of a style. Small models say it all the same; such words are found here,
and left out where a good caption remains.
"""

import hashlib
import re

from finetune.inputs import Mode

ASKED = {
    Mode.GENERAL: "Describe this image in one or two sentences: what it shows, its colours, the surroundings, the "
    "light and the framing.",
    Mode.CHARACTER: "Describe the pose, the clothing, the surroundings, the light and the framing of this image in one "
    "sentence. Do not describe the face, the hair, the skin or the body.",
    Mode.STYLE: "Say in one sentence what is to be seen in this image and what happens. Do not mention how it is made: "
    "no medium, no technique, no style.",
    Mode.PRODUCT: "Describe the surroundings, the surface, the light and the camera angle of this image in one "
    "sentence. Name the main object in one word. Do not mention its colour, material, logo or lettering.",
}
PLAINLY = "Answer with the description alone."
VERSION = 1
"""Changes with what is made of answers, so that those that were kept are not taken for new ones."""

_PICTURE = r"(?:image|picture|photo|photograph|snapshot|shot)"
_SHOWS = (
    r"(?:shows?|showing|depicts?|depicting|features?|featuring|displays?|presents?|portrays?|captures?|contains?|"
    r"illustrates?|consists of|is of|appears to (?:show|be)|seems to (?:show|be)|is|we (?:can )?see|you can see|"
    r"there (?:is|are))"
)
_PREAMBLES = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?:sure|certainly|of course|okay|ok|absolutely|yes)\b[!,.:]*\s+",
        r"here(?:'s|’s| is| are)\b[^:.\n]{0,80}:\s*",
        r"(?:image |picture |photo )?(?:caption|description|answer|assistant|output)\s*:\s*",
        rf"(?:in )?(?:the|this|that|an?) (?:\w+ )?{_PICTURE}s?(?: (?:here|above|provided))?,?\s+{_SHOWS}\s+",
        rf"(?:in|from) (?:the|this) {_PICTURE},?\s+",
        rf"(?:this|that|it)(?: is|'s|’s) (?:an?|the) (?:\w+ )?{_PICTURE} (?:of|showing|that shows)\s+",
        rf"(?:an?|the) (?:close-?up )?{_PICTURE} (?:of|showing|depicting|featuring)\s+",
        rf"{_PICTURE} of\s+",
        r"(?:we (?:can )?see|you can see|there (?:is|are))\s+",
    )
]
_REFUSAL = re.compile(
    r"(?:i(?:'m|’m| am) (?:sorry|unable|not able|afraid)|sorry\b|(?:unfortunately,? )?i (?:can(?:'|’)?t|cannot|can not|"
    r"do not|don(?:'|’)t) |as an ai\b|unable to|no image\b|please (?:provide|upload))",
    re.IGNORECASE,
)
_THOUGHT = re.compile(r"<think>.*?(?:</think>|$)", re.DOTALL)
_MARKUP = re.compile(r"<[^<>\n]{1,40}>|\*\*|__|`+|^#+\s*", re.MULTILINE)
_BULLET = re.compile(r"^\s*(?:[-*•–]|\d+[.)])\s+", re.MULTILINE)
_LABEL = re.compile(r"^(?:[A-Z][\w ]{2,24}):\s+")
_ENDINGS = re.compile(
    r"(?:[\s,;:–-]+(?:a|an|the|and|or|with|of|in|on|at|to|by|for|from|as|is|are|that|which|while|its|his|her))+$", re.I
)
_QUOTES = "\"'“”‘’«» "

_COLOURS = (
    "red orange yellow green blue purple violet pink brown black white grey gray golden gold silver beige tan "
    "turquoise teal maroon navy ivory magenta crimson scarlet bronze copper lilac lavender"
)
_MATERIALS = (
    "leather plastic metal metallic steel aluminium aluminum wooden wood glass ceramic porcelain cotton silk velvet "
    "denim wool woollen linen rubber marble suede brass matte glossy shiny"
)
_SURROUNDINGS = (
    "background backdrop table tabletop surface wall floor counter countertop shelf desk cloth tablecloth light "
    "lighting lights sky grass sand field room studio space ground curtain curtains window sheet platform pedestal "
    "podium tray board plank planks bench chair sofa couch carpet rug tiles snow water sea leaves flowers shadow "
    "shadows gradient setting scene slab block stone door fence bed blanket kitchen"
)
_LOOKS = {
    Mode.CHARACTER: "hair haired hairstyle blond blonde brunette redhead bald balding beard bearded stubble mustache "
    "moustache goatee eye eyes eyed eyebrow eyebrows eyelashes facial freckles freckled wrinkles wrinkled complexion "
    "skin skinned cheek cheeks cheekbones chin jaw jawline lips nose forehead dimples caucasian asian african hispanic "
    "muscular slim slender skinny chubby overweight curvy petite ponytail pigtails braid braids braided curls curly "
    "dreadlocks afro tattoo tattoos tattooed scar scars fur furry snout whiskers ears young elderly middle-aged",
    Mode.STYLE: "watercolor watercolour oil-painting acrylic gouache sketch sketched drawing drawn illustration "
    "illustrated cartoon cartoonish anime manga artwork rendering rendered render palette brush-strokes brushstroke "
    "brushstrokes style styled stylized stylised stylistic technique monochrome pixelated vector minimalist "
    "minimalistic painterly impressionist impressionistic abstract surreal pastel clipart emoji icon engraving woodcut "
    "collage mosaic graffiti 3d cel-shaded photorealistic black-and-white",
    Mode.PRODUCT: "logo logos brand branded branding label labels lettering slogan emblem monogram inscription",
}
_PATTERNS = {
    Mode.CHARACTER: r"face(?!s? (?:the|away|left|right|to|a|each)\b)",
    Mode.STYLE: r"paintings?(?! (?:an?|the|on|his|her|their|its)\b)|art(?!s\b)|pencil|crayon",
    Mode.PRODUCT: r"brand (?:logo|name|label)s?",
}
_ADJECTIVES = set(
    f"{_COLOURS} {_MATERIALS} blond blonde brunette bald balding bearded freckled wrinkled caucasian asian african "
    "hispanic muscular slim slender skinny chubby overweight curvy petite braided curly tattooed furry young elderly "
    "middle-aged branded watercolor watercolour sketched drawn illustrated cartoon cartoonish anime rendered stylized "
    "stylised stylistic monochrome pixelated vector minimalist minimalistic painterly impressionist impressionistic "
    "abstract surreal pastel 3d cel-shaded photorealistic black-and-white".split()
)
_NEAR = rf"(?!\s+of\b)(?!(?:\s+[\w-]+){{0,2}}\s+(?:{_SURROUNDINGS.replace(' ', '|')})\b)"


def words(mode: Mode, leaked: list[str] | None = None) -> str:
    """What a captioner is asked; with words of its first answer that must not be said, more sharply."""
    without = f" Do not use these words: {', '.join(leaked)}." if leaked else ""
    return f"{ASKED[mode]}{without} {PLAINLY}"


def fingerprint(mode: Mode) -> str:
    """Tells one instruction, and what is made of its answers, from another."""
    return hashlib.sha256(f"{VERSION} {words(mode)}".encode()).hexdigest()[:16]


def tidied(answer: str, longest_words: int, is_cut: bool = False) -> str:
    """The caption in an answer: its first sentences without preamble and markup, as far as an encoder reads.

    Empty when it says nothing, refuses, or repeats itself. `is_cut` says that the answer had no room to end.
    """
    lines = [_LABEL.sub("", _BULLET.sub("", line).strip()) for line in _plain(answer).splitlines()]
    joined = "".join(line + (" " if line[-1] in ".,;:!?" else ", ") for line in lines if line)
    text = _without_preamble(" ".join(joined.split()).removesuffix(",").strip(_QUOTES))
    if _REFUSAL.match(text):
        return ""
    sentences = list(dict.fromkeys(re.split(r"(?<=[.!?])[\"”’]?\s+", text)))
    if is_cut and not text.endswith((".", "!", "?")):
        sentences = sentences[:-1] or [_ENDINGS.sub("", sentences[-1].rpartition(",")[0] or sentences[-1])]
    text = _shortened(sentences, longest_words).rstrip(" .,;:")
    said = re.findall(r"\w+", text.lower())
    if not any(len(word) > 1 for word in said) or (len(said) > 8 and len(set(said)) < len(said) / 3):
        return ""
    return _begun_small(text)


def leaks(text: str, mode: Mode, trigger: str) -> list[str]:
    """The words of a caption that say what the trigger word is to stand for, in their order."""
    if mode is Mode.GENERAL:
        return []
    allowed = {word.lower() for word in re.findall(r"[\w-]+", trigger)}
    found = [" ".join(match[0].lower().split()) for match in _leaking(mode).finditer(text)]
    return list(dict.fromkeys(word for word in found if word not in allowed))


def without_leaks(text: str, mode: Mode, trigger: str) -> str:
    """A caption without the words that leak, as far as a good one remains: their phrase, else their clause, is left
    out."""
    for word in leaks(text, mode, trigger):
        for shorter in _cuts(text, word):
            is_caption = len(shorter.split()) > 1 and re.search(r"[^\W\d_]{3}", shorter)
            if is_caption and word not in leaks(shorter, mode, trigger):
                text = shorter
                break
    return text


def _plain(answer: str) -> str:
    return _MARKUP.sub("", _THOUGHT.sub("", answer.replace("\r", "\n"))).strip()


def _without_preamble(text: str) -> str:
    for _ in range(4):
        before = text
        for preamble in _PREAMBLES:
            text = text[match.end() :].lstrip(_QUOTES) if (match := preamble.match(text)) else text
        if text == before:
            break
    return text


def _shortened(sentences: list[str], longest_words: int) -> str:
    kept = sentences[0].split()
    if len(kept) > longest_words:
        start = " ".join(kept[:longest_words])
        head = start.rpartition(",")[0]
        return _ENDINGS.sub("", head if len(head) > len(start) / 2 else start)
    for sentence in sentences[1:]:
        if len(kept) + len(sentence.split()) > longest_words:
            break
        kept += sentence.split()
    return " ".join(kept)


def _begun_small(text: str) -> str:
    """A caption stands after a trigger word: a common first word begins small."""
    first = text.split(" ", 1)[0].rstrip(",")
    is_common = first.lower() in {
        "a",
        "an",
        "the",
        "two",
        "three",
        "four",
        "several",
        "many",
        "some",
        "there",
        "in",
        "on",
    }
    return text[0].lower() + text[1:] if is_common or first.endswith("ing") else text


def _leaking(mode: Mode) -> re.Pattern[str]:
    listed = "|".join(re.escape(word).replace(r"\-", "[- ]") for word in _LOOKS[mode].split())
    parts = [_PATTERNS[mode], listed]
    if mode is Mode.PRODUCT:
        parts.append(rf"(?:{_COLOURS.replace(' ', '|')}|{_MATERIALS.replace(' ', '|')})\b{_NEAR}")
    return re.compile(rf"(?<![\w-])(?:{'|'.join(parts)})(?![\w])", re.IGNORECASE)


def _cuts(text: str, word: str) -> list[str]:
    """Ways to leave a word out, the gentlest first."""
    leak = rf"(?<![\w-]){re.escape(word)}(?!\w)".replace(r"\ ", r"\s+")
    some = r"(?:(?!(?:with|in|on|and|at|is|are|of|sits?|stands?)\b)[\w'’-]+[ ]){0,5}"
    phrase = rf",?[ ]+(?:with|in|has|having|and|featuring|using)[ ]+{some}{leak}(?:[ ](?:style|technique|tones?))?"
    opening = (
        rf"(?i:^(?:an?|the|this)?[ ]*{some}{leak}(?:[ ]style)?[ ]*(?:[\w-]+[ ]){{0,2}}(?:of|showing|depicting)[ ]+)"
    )
    adjective = rf"(?:\b(?P<article>an?)[ ]+)?(?:very[ ]+)?{leak}(?:[ ,]+(?:and[ ]+)?|-)(?P<next>[^\W\d_])"
    clauses = [piece for piece in re.split(r"(?<=[.!?;,])\s+", text) if not re.search(leak, piece, re.IGNORECASE)]
    tries = [re.sub(opening, "", text)]
    if word in _ADJECTIVES:
        tries.append(re.sub(adjective, _with_article, text, flags=re.IGNORECASE))
    tries += [re.sub(phrase, "", text, flags=re.IGNORECASE), " ".join(clauses)]
    return [" ".join(cut.split()).strip(" ,;.") for cut in tries]


def _with_article(found: re.Match[str]) -> str:
    if not found["article"]:
        return found["next"]
    return f"{'an' if found['next'].lower() in 'aeio' else 'a'} {found['next']}"
