"""Turns what a photo shall give away into a SYNTHETIC product photo (JPEG bytes), for the synthetic marketplace.

Drawn with Pillow at double size and halved, which is its cheapest anti-aliasing. Colours and prints say whom a thing
is for; fur, snow, sun or leaves say the season; badges as shops print them say age and fragility. The rest
(background, pose, further items, slogan, watermark) is noise. About 200 photos a second on one core.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from product_classificator.catalog.silhouettes import PACKAGES, SILHOUETTES, Points, Silhouette

Colour = tuple[int, int, int]

_WIDTH, _HEIGHT = 600, 800  # pixels drawn; the photo has half of each
_PALETTES: Mapping[str, tuple[Colour, ...]] = {
    "Мужской": ((28, 40, 70), (70, 74, 82), (72, 80, 48), (34, 34, 36), (92, 62, 40)),
    "Женский": ((186, 40, 92), (142, 60, 150), (220, 120, 130), (150, 20, 50), (205, 160, 190)),
    "Унисекс": ((60, 140, 90), (225, 170, 50), (222, 110, 40), (200, 196, 180), (40, 150, 160)),
    "Мальчики": ((40, 110, 230), (60, 180, 240), (240, 90, 40), (90, 200, 70), (50, 70, 200)),
    "Девочки": ((250, 150, 190), (250, 190, 210), (190, 150, 240), (255, 120, 160), (170, 220, 240)),
}
_PRINTS: Mapping[str, tuple[str, ...]] = {
    "Мужской": ("plain", "plain", "check"),
    "Женский": ("plain", "plain", "dots"),
    "Унисекс": ("plain", "plain", "stripes"),
    "Мальчики": ("stars", "stars", "stripes"),
    "Девочки": ("hearts", "hearts", "dots"),
}
_AGE_COLOURS: Mapping[str, Colour] = {
    "0+": (245, 245, 245),
    "3+": (250, 215, 40),
    "6+": (60, 170, 70),
    "12+": (40, 100, 220),
    "18+": (215, 30, 40),
}
_GLASS: tuple[Colour, ...] = ((190, 222, 232), (205, 232, 222), (222, 230, 240))
_SLOGANS = ("SALE", "-30%", "NEW", "HIT", "TOP 1", "-50%", "LUX")


@dataclass(frozen=True)
class _Look:
    """Colours and manner of one photo."""

    body: Colour
    trim: Colour
    print_name: str
    is_glossy: bool
    is_furry: bool

    def colour(self, role: str) -> Colour:
        fixed: Mapping[str, Colour] = {
            "dark": (48, 44, 46),
            "light": (244, 242, 236),
            "metal": (168, 172, 180),
            "skin": (196, 158, 112),
            "body": self.body,
            "trim": self.trim,
        }
        return fixed[role]


@dataclass(frozen=True)
class _Pose:
    """Where an item lies: size and centre in pixels, stretch (width to height), turn in radians."""

    size_px: float
    x: float
    y: float
    stretch: float
    turn: float

    def place(self, points: Points) -> list[tuple[float, float]]:
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        scale = self.size_px / 100
        matrix = np.array([[cos * self.stretch, sin * self.stretch], [-sin, cos]]) * scale
        placed = (points - 50) @ matrix + (self.x, self.y)
        return [(x, y) for x, y in placed.tolist()]


def draw_photo(shown: Mapping[str, str], rng: np.random.Generator) -> bytes:
    """Draws a photo that gives away `shown` (characteristic -> label) and nothing else.

    Without a sub_category it shows closed packaging. The same `shown` and state of `rng` give the same bytes.

    Returns:
        A JPEG of 300 x 400 pixels.
    """
    canvas = _background(rng)
    sub_category = shown.get("sub_category")
    package = PACKAGES[int(rng.integers(len(PACKAGES)))]
    silhouette = package if sub_category is None else SILHOUETTES[sub_category]
    look = _look(shown, rng)
    for pose in _poses(shown, rng):
        _paint_item(canvas, silhouette, pose, look)
    draw = ImageDraw.Draw(canvas)
    _scatter_season(draw, shown.get("season"), rng)
    _paint_badges(draw, shown, rng)
    _paint_noise(draw, rng)
    buffer = io.BytesIO()
    canvas.reduce(2).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _pick(rng: np.random.Generator, options: tuple[Colour, ...]) -> Colour:
    return options[int(rng.integers(len(options)))]


def _shifted(colour: Colour, by: float) -> Colour:
    red, green, blue = (min(255, max(0, int(channel + by))) for channel in colour)
    return red, green, blue


def _look(shown: Mapping[str, str], rng: np.random.Generator) -> _Look:
    sex = shown.get("sex") or list(_PALETTES)[int(rng.integers(len(_PALETTES)))]
    is_glass = shown.get("fragility") == "да"
    body = _shifted(_pick(rng, _GLASS if is_glass else _PALETTES[sex]), rng.uniform(-18, 18))
    print_name = _PRINTS[sex][int(rng.integers(len(_PRINTS[sex])))]
    return _Look(
        body=body,
        trim=_shifted(_pick(rng, _PALETTES[sex]), -25),
        print_name="plain" if is_glass else print_name,
        is_glossy=is_glass,
        is_furry=shown.get("season") == "зима" and "sub_category" in shown,
    )


def _poses(shown: Mapping[str, str], rng: np.random.Generator) -> list[_Pose]:
    is_small = shown.get("sex") in ("Мальчики", "Девочки")
    pose = _Pose(
        size_px=rng.uniform(360, 450) if is_small else rng.uniform(420, 540),
        x=_WIDTH / 2 + rng.uniform(-50, 50),
        y=_HEIGHT / 2 + rng.uniform(-70, 70),
        stretch=rng.uniform(0.85, 1.15) * float(rng.choice([-1, 1])),
        turn=rng.normal(0, 0.18),
    )
    if rng.random() > 0.15:
        return [pose]
    behind = replace(pose, size_px=pose.size_px * 0.6, x=pose.x - 130, y=pose.y - 130)
    return [behind, replace(pose, size_px=pose.size_px * 0.75, x=pose.x + 70, y=pose.y + 70)]


def _background(rng: np.random.Generator) -> Image.Image:
    style = rng.choice(["plain", "gradient", "cluttered"], p=[0.5, 0.25, 0.25])
    shades = rng.integers(205, 256, (2, 3)) if style != "cluttered" else rng.integers(150, 240, (2, 3))
    above, below = [(int(red), int(green), int(blue)) for red, green, blue in shades]
    canvas = Image.new("RGB", (_WIDTH, _HEIGHT), (250, 250, 250) if style == "plain" and rng.random() < 0.6 else above)
    if style == "gradient":
        ends = Image.new("RGB", (1, 2), above)
        ends.putpixel((0, 1), _shifted(below, -50))
        return ends.resize((_WIDTH, _HEIGHT), Image.Resampling.BILINEAR)
    if style == "cluttered":
        draw = ImageDraw.Draw(canvas)
        draw.rectangle((0, int(rng.integers(480, 680)), _WIDTH, _HEIGHT), fill=_shifted(below, -40))
        for _ in range(int(rng.integers(4, 9))):
            x, y = rng.integers(-60, _WIDTH), rng.integers(-60, _HEIGHT)
            box = (int(x), int(y), int(x + rng.integers(40, 220)), int(y + rng.integers(40, 220)))
            colour = _shifted(below, rng.uniform(-70, 40))
            (draw.ellipse if rng.random() < 0.4 else draw.rectangle)(box, fill=colour)
    return canvas


def _paint_item(canvas: Image.Image, silhouette: Silhouette, pose: _Pose, look: _Look) -> None:
    draw = ImageDraw.Draw(canvas)
    shadow = (pose.x - pose.size_px * 0.36, pose.y + pose.size_px * 0.4, pose.x + pose.size_px * 0.36)
    draw.ellipse((*shadow, pose.y + pose.size_px * 0.52), fill=(176, 174, 172))
    mask = Image.new("L", canvas.size)
    for is_body in (True, False):
        for patch in silhouette:
            if (patch.role == "body") != is_body:
                continue
            place = pose.place(patch.points)
            width = round(patch.width * pose.size_px / 100)
            _fill(draw, place, width, look.colour(patch.role))
            if is_body:
                _fill(ImageDraw.Draw(mask), place, width, 255)
        if is_body:
            _paint_surface(canvas, mask, look)
    if look.is_furry:
        _paint_fur(draw, pose.place(silhouette[0].points), pose.size_px * 0.03)


def _fill(draw: ImageDraw.ImageDraw, place: list[tuple[float, float]], width: int, ink: Colour | int) -> None:
    if width:
        draw.line(place, fill=ink, width=width, joint="curve")
    else:
        draw.polygon(place, fill=ink)


def _paint_surface(canvas: Image.Image, mask: Image.Image, look: _Look) -> None:
    """Lays print and shade on the pixels of `mask`."""
    box = mask.getbbox()
    if box is None:
        return
    part = mask.crop(box)
    if look.print_name != "plain":
        pattern = Image.new("RGB", part.size, look.body)
        _paint_print(ImageDraw.Draw(pattern), part.size, look)
        canvas.paste(pattern, box[:2], part)
    shade = Image.linear_gradient("L").rotate(90).resize(part.size).point([value // 3 for value in range(256)])
    canvas.paste((0, 0, 0), box, ImageChops.multiply(part, shade))
    if look.is_glossy:
        gloss = Image.new("L", part.size)
        x, y = part.size
        ImageDraw.Draw(gloss).line([(x * 0.25, y * 0.06), (x * 0.2, y * 0.9)], fill=200, width=max(4, x // 12))
        canvas.paste((255, 255, 255), box, ImageChops.multiply(part, gloss))


def _paint_print(draw: ImageDraw.ImageDraw, size: tuple[int, int], look: _Look) -> None:
    ink = _shifted(look.trim, 60) if sum(look.body) < 330 else _shifted(look.trim, -40)
    if look.print_name in ("stripes", "check"):
        for y in range(0, size[1], 44):
            draw.rectangle((0, y, size[0], y + 14), fill=ink)
        if look.print_name == "check":
            for x in range(0, size[0], 44):
                draw.rectangle((x, 0, x + 8, size[1]), fill=_shifted(ink, 30))
        return
    motif = {"dots": _dot, "hearts": _heart, "stars": _star}[look.print_name]
    for row, y in enumerate(range(20, size[1], 62)):
        for x in range(20 + 31 * (row % 2), size[0], 62):
            draw.polygon([(x + 17 * dx, y + 17 * dy) for dx, dy in motif()], fill=ink)


@lru_cache
def _dot() -> list[tuple[float, float]]:
    return [(0.7 * float(np.cos(a)), 0.7 * float(np.sin(a))) for a in np.linspace(0, 2 * np.pi, 14, endpoint=False)]


@lru_cache
def _heart() -> list[tuple[float, float]]:
    return [(0, 1), (-1, 0), (-0.9, -0.6), (-0.5, -0.9), (0, -0.4), (0.5, -0.9), (0.9, -0.6), (1, 0)]


@lru_cache
def _star() -> list[tuple[float, float]]:
    angles = np.linspace(-np.pi / 2, 1.5 * np.pi, 10, endpoint=False)
    return [
        ((1.1, 0.45)[i % 2] * float(np.cos(a)), (1.1, 0.45)[i % 2] * float(np.sin(a))) for i, a in enumerate(angles)
    ]


def _paint_fur(draw: ImageDraw.ImageDraw, outline: list[tuple[float, float]], radius: float) -> None:
    for (x, y), (next_x, next_y) in zip(outline, outline[1:] + outline[:1], strict=True):
        steps = max(1, int(max(abs(next_x - x), abs(next_y - y)) / (radius * 1.2)))
        for step in range(steps):
            at = (x + (next_x - x) * step / steps, y + (next_y - y) * step / steps)
            draw.circle(at, radius * (1.0 + 0.4 * (step % 2)), fill=(238, 232, 222))


def _scatter_season(draw: ImageDraw.ImageDraw, season: str | None, rng: np.random.Generator) -> None:
    if season == "лето":
        x, y = float(rng.choice([70, _WIDTH - 70])), 76.0
        for angle in np.arange(0, 2 * np.pi, np.pi / 6):
            end = (x + 72 * float(np.cos(angle)), y + 72 * float(np.sin(angle)))
            draw.line([(x, y), end], fill=(255, 190, 20), width=9)
        draw.circle((x, y), 46, fill=(255, 205, 30))
        draw.rectangle((0, _HEIGHT - 60, _WIDTH, _HEIGHT), fill=(238, 208, 140))
    if season not in ("зима", "демисезон"):
        return
    for x, y in rng.uniform((0, 0), (_WIDTH, _HEIGHT), (22 if season == "зима" else 14, 2)).tolist():
        if season == "зима":
            for dx, dy in ((16, 0), (8, 14), (-8, 14)):
                draw.line([(x - dx, y - dy), (x + dx, y + dy)], fill=(120, 180, 240), width=5)
        else:
            leaf = [(x - 22, y), (x - 6, y - 12), (x + 22, y - 4), (x - 4, y + 12)]
            draw.polygon(leaf, fill=((214, 120, 30), (190, 70, 30), (220, 170, 40))[int(x) % 3])


@lru_cache
def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _paint_badges(draw: ImageDraw.ImageDraw, shown: Mapping[str, str], rng: np.random.Generator) -> None:
    age = shown.get("age_restrictions")
    if age is not None:
        x, y = float(rng.uniform(6, 30)), float(rng.uniform(_HEIGHT - 150, _HEIGHT - 130))
        draw.rectangle((x, y, x + 116, y + 116), fill=_AGE_COLOURS[age], outline=(30, 30, 30), width=5)
        draw.text((x + 58, y + 58), age, fill=(20, 20, 20), font=_font(54), anchor="mm")
    if shown.get("isadult") == "да":
        draw.rectangle((0, 0, _WIDTH, 46), fill=(200, 20, 30))
        draw.text((_WIDTH / 2, 22), "18+   18+   18+", fill=(255, 255, 255), font=_font(36), anchor="mm")
    if shown.get("fragility") == "да":
        x, y = _WIDTH - 136.0, float(rng.uniform(_HEIGHT - 160, _HEIGHT - 140))
        draw.rectangle((x, y, x + 118, y + 130), fill=(255, 255, 255), outline=(200, 20, 30), width=7)
        draw.polygon([(x + 28, y + 18), (x + 90, y + 18), (x + 80, y + 62), (x + 38, y + 62)], fill=(200, 20, 30))
        draw.line([(x + 59, y + 60), (x + 59, y + 106)], fill=(200, 20, 30), width=9)
        draw.line([(x + 34, y + 110), (x + 84, y + 110)], fill=(200, 20, 30), width=9)


def _paint_noise(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    if rng.random() < 0.25:
        slogan = _SLOGANS[int(rng.integers(len(_SLOGANS)))]
        x, y = float(rng.uniform(110, _WIDTH - 110)), float(rng.uniform(60, 120))
        draw.ellipse((x - 90, y - 42, x + 90, y + 42), fill=_shifted((200, 60, 90), rng.uniform(-80, 50)))
        draw.text((x, y), slogan, fill=(255, 255, 255), font=_font(48), anchor="mm")
    if rng.random() < 0.15:
        for y in range(140, _HEIGHT, 220):
            draw.text((float(rng.uniform(40, 260)), y), "synthetic shop", fill=(190, 190, 190), font=_font(40))
