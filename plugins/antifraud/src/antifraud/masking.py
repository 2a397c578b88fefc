"""Words of makers and apps in a user agent are hidden from lists and model: they describe no client.

A phone's model and its build id ("HTC Butterfly", "AP3A.240617.008"), the details that apps add about their device, and
the name of the app in whose web view a page is shown. Every step reads the text once, so that no text makes it slow.
"""

from __future__ import annotations

import re

from antifraud.lexicon import AUTOMATION_WORDS, CONTACT

#: Brands by which the parser says "some device", not which.
VAGUE_BRANDS = frozenset({"Spider", "Generic", "Generic_Android", "Generic_Inettv"})
#: A model's name that is longer than this is none.
LONGEST_MODEL = 60
#: Groups of automation's words that no app of people's bears by chance.
SURE_WORDS = ("bot", "crawl", "script", "headless")

_ANDROID = re.compile(r"andr[o0]id|\bAdr [\d.]", re.IGNORECASE)
#: A crawler that declares itself in an Android comment is no phone's maker: its words stay.
_DECLARES = re.compile(r"compatible|https?:|www\.|@", re.IGNORECASE)
#: The parts of an Android comment that are the system's own. All others are the maker's: model, build, firmware.
_SYSTEMS = re.compile(
    r"linux(?: \w+)?|[uni]|wv|k|mobile|tablet|tv|touch|arm(?:_64|64|v7l)?|x86(?:_64)?|andr[o0]id(?:[ /-]?[\d.]+)?"
    r"|adr [\d.]+|[a-z]{2}(?:[-_][a-z]{2,4})?|rv:[\d.]+|windows phone(?: os)? [\d.]+|trident/[\d.]+|iemobile/[\d.]+"
    r"|windows nt [\d.]+|win64|x64|wow64|macintosh|iphone|ipad|x11|intel mac os x [\d_.]+"
    r"|opera (?:mini|mobi|tablet)/[\w./-]+|hmscore [\d.]+|j2me/midp",
    re.IGNORECASE,
)
#: Here the browser's own words go on, also behind brackets that a model's name left open.
_AFTER_COMMENT = (" applewebkit", "applewebkit", " gecko/", " u2/", " ucbrowser")
#: Facebook's apps add "[FBAN/FB4A;FBAV/26.0;FBDM/{density=1.5,width=480};FBDV/…]", with carrier and model; or cut off.
FACEBOOK = re.compile(r"\[(?=FB|IAB)[A-Z_]{2,8}/[^\[\]]*(?:\]|$)")
_FACEBOOK_MASK = "[FBAN/FB4A;FBAV/1.0;]"


#: The model's name in an Android comment, and the whole of Dalvik's: the trained model never sees them.
_ANDROID_MODEL = re.compile(
    r"(Android[ /-]?[\d.]{0,12};(?: ?U;)?(?: ?[a-z]{2}(?:[-_][A-Za-z]{0,3})?;)?) ?"
    r"(?![^;)]{0,200}(?:https?:|@|compatible))[^;/)]{1,60}?"
    r"((?: Build/[^;)]{0,80})?(?:; wv)?\) ?(?:AppleWebKit|Gecko|U2|UCBrowser)|\)$)"
)
_DALVIK_MODEL = re.compile(r"(Dalvik/[\d.]+ \(Linux; U; Android [\w.]+;) [^)]*\)")


def mask_model(raw: str, brand: str | None, model: str | None) -> str:
    """Replace a device's model by a neutral letter, as Chrome does itself: the text that the trained model sees."""
    text = _DALVIK_MODEL.sub(r"\1 K)", _ANDROID_MODEL.sub(r"\1 K\2", raw)) if "Android" in raw else raw
    if not model or not brand or brand in VAGUE_BRANDS or brand == "Apple" or not 3 < len(model) <= LONGEST_MODEL:
        return text
    words = [re.escape(word) for word in re.findall(r"[^\W_]+", model)]
    return re.sub(r"[\W_]{1,8}".join(words), "K", text, flags=re.IGNORECASE)


def mask_maker(text: str) -> str:
    """Leave out all that a maker or Facebook's apps say of the device: the text that lists and checks read."""
    return mask_android(FACEBOOK.sub(_FACEBOOK_MASK, text) if "[FB" in text else text)


def mask_android(text: str) -> str:
    """Keep the system's own parts of every Android comment; the maker's become one ``K``."""
    if _ANDROID.search(text) is None:
        return text
    parts, at = [], 0
    for start, end in _comments(text):
        inside = text[start + 1 : end]
        is_android = _ANDROID.search(inside) is not None or text[max(start - 8, 0) : start] == "Android "
        if is_android and _DECLARES.search(inside) is None:
            parts += [text[at : start + 1], _systems_parts(inside)]
            at = end
    return "".join(parts) + text[at:] if parts else text


def _comments(text: str) -> list[tuple[int, int]]:
    """Where the outermost bracketed parts begin and end; one that is never closed is left out."""
    found, depth, start = [], 0, 0
    for match in re.finditer(r"[()]", text):
        at = match.start()
        if text[at] == "(":
            start = start if depth else at
            depth += 1
        elif depth:
            depth -= 1
            if depth and text[at + 1 : at + 13].lower().startswith(_AFTER_COMMENT):
                depth = 0
            if not depth:
                found.append((start, at))
    return found


def _systems_parts(inside: str) -> str:
    kept: list[str] = []
    for part in inside.split(";"):
        part = part.strip()
        shown = part if _SYSTEMS.fullmatch(part) else "K" if part else ""
        if shown and not (shown == "K" and kept and kept[-1] == "K"):
            kept.append(shown)
    return "; ".join(kept)


#: Office's own programs on people's devices, not the previews that lists know by the same name.
_OFFICE = re.compile(
    r"^((?:Microsoft Office )?(?:Word|Excel|PowerPoint|OneNote|Outlook|Mobile)/[\d./]{1,40})"
    r" \((?:iOS|Mac OS|Windows|Android)/"
)


def hide_app(text: str) -> str:
    """Leave out the name of the app in whose web view a page is shown, unless it is automation's.

    Lists know many such names ("Viber", "Slack/") as the makers of link previews.
    """
    office = _OFFICE.match(text)
    if office is not None:
        return text[office.end(1) :].strip()
    app = _app_of(text)
    if not app or CONTACT.search(app) or "compatible" in app or is_sure(app):
        return text
    return text.replace(f" {app}", "", 1)


def _app_of(text: str) -> str:
    """The text behind a web view's own words ("… wv) … Safari/537.36 Viber/21.1"), in Electron before Chrome's."""
    view = text.find("; wv) ")
    view = text.find(" Version/4.0 Chrome/") if view < 0 else view
    if view >= 0 and "Android" in text:
        return _after_word(text, text.find(" Safari/", view))
    view = text.find("like Mac OS X)")
    if view >= 0:
        app = _after_word(text, text.find(" Mobile/", view))
        return app if "Safari/" not in app else ""
    electron, start = text.find(" Electron/"), text.find("(KHTML, like Gecko) ")
    chrome = text.rfind("Chrome/", 0, electron) if electron >= 0 and start >= 0 else -1
    return text[start + len("(KHTML, like Gecko) ") : chrome].strip() if chrome > start else ""


def _after_word(text: str, at: int) -> str:
    """The text after the word before which the blank at ``at`` stands."""
    space = text.find(" ", at + 1) if at >= 0 else -1
    return text[space + 1 :] if space >= 0 else ""


def is_sure(text: str) -> bool:
    """Whether it holds a word that only automation bears."""
    return any(AUTOMATION_WORDS[name].search(text) for name in SURE_WORDS)
