"""Turns the name of a sub-category into the outlines that `drawing` paints for the synthetic marketplace.

Outlines are data: points on a 100 x 100 sheet, y down, mostly the left half of a symmetric thing. Everything becomes a
polygon or a line, so that one matrix moves, turns and stretches it all. The price is a childlike look; it is enough
for a network trained on real photos to tell a boot from a vase, and it needs no picture of anybody else.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Role = Literal["body", "trim", "dark", "light", "metal", "skin"]
Points = npt.NDArray[np.float64]


class Patch(NamedTuple):
    """One painted piece of a silhouette.

    Attributes:
        role: which colour it takes; "body" also carries the print.
        points: (n, 2) x and y, 0 to 100.
        width: thickness of a line, 0 for a filled polygon.
    """

    role: Role
    points: Points
    width: float = 0.0


Silhouette = tuple[Patch, ...]


def _parse(points: str) -> Points:
    return np.array([pair.split(",") for pair in points.split()], dtype=np.float64)


def _rounded(points: Points, times: int) -> Points:
    """Cuts the corners of a closed outline (Chaikin, 1974)."""
    for _ in range(times):
        following = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * following, 0.25 * points + 0.75 * following], 1).reshape(-1, 2)
    return points


def _shape(role: Role, points: str, smooth: int = 0) -> Patch:
    return Patch(role, _rounded(_parse(points), smooth))


def _mirrored(role: Role, left_half: str, smooth: int = 0) -> Patch:
    """The left half from top to bottom, and its mirror image."""
    left = _parse(left_half)
    right = left[::-1] * (-1, 1) + (100, 0)
    return Patch(role, _rounded(np.concatenate([left, right]), smooth))


def _oval(role: Role, x: float, y: float, radius_x: float, radius_y: float) -> Patch:
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    return Patch(role, np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], 1))


def _line(role: Role, width: float, points: str) -> Patch:
    return Patch(role, _parse(points), width)


def _arc(role: Role, width: float, box: tuple[float, float, float, float], degrees: tuple[float, float]) -> Patch:
    """Part of an ellipse; `box` is (x, y, radius_x, radius_y), degrees run clockwise from three o'clock."""
    angles = np.radians(np.linspace(*degrees, 20))
    x, y, radius_x, radius_y = box
    return Patch(role, np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], 1), width)


PACKAGES: tuple[Silhouette, ...] = (
    (
        _shape("skin", "12,30 50,18 88,30 88,76 50,92 12,76"),
        _line("dark", 1.0, "12,30 50,43 88,30"),
        _line("dark", 1.0, "50,43 50,92"),
        _line("trim", 6.0, "31,24 69,36.5 69,52"),
        _shape("trim", "18,56 38,63 38,76 18,69"),
    ),
    (
        _mirrored("body", "16,40 16,92"),
        _mirrored("body", "10,26 10,42"),
        _mirrored("trim", "45,26 45,92"),
        _line("dark", 1.0, "10,42 90,42"),
        _arc("trim", 5, (38, 18, 12, 8), (0, 360)),
        _arc("trim", 5, (62, 18, 12, 8), (0, 360)),
    ),
    (
        _mirrored("body", "20,28 20,94"),
        _arc("trim", 3, (50, 28, 16, 22), (180, 360)),
        _mirrored("light", "34,50 34,72"),
        _line("dark", 1.0, "20,28 80,28"),
    ),
)
"""What a photo shows that gives no sub-category away: a parcel, a gift box, a carrier bag."""

SILHOUETTES: Mapping[str, Silhouette] = {
    "Футболки": (
        _mirrored("body", "41,12 30,16 6,34 16,48 27,41 27,90"),
        _oval("dark", 50, 13, 9, 5),
        _line("trim", 1.5, "27,41 29,34"),
        _line("trim", 1.5, "73,41 71,34"),
    ),
    "Платья": (
        _mirrored("body", "42,6 36,8 33,26 39,42 30,60 16,92 34,96"),
        _mirrored("trim", "39,41 38,46"),
        _mirrored("skin", "42,6 47,16"),
    ),
    "Куртки": (
        _mirrored("body", "40,12 26,17 12,40 7,78 19,81 26,50 26,88"),
        _mirrored("trim", "42,6 37,14 43,20"),
        _line("metal", 1.5, "50,18 50,88"),
        _line("dark", 1.5, "31,62 42,66"),
        _line("dark", 1.5, "69,62 58,66"),
        _mirrored("dark", "26,84 26,89"),
    ),
    "Брюки": (
        _shape("body", "32,6 68,6 74,95 58,95 50,34 42,95 26,95"),
        _shape("trim", "32,6 68,6 68,11 31.5,11"),
        _line("dark", 1.0, "50,11 50,32"),
        _line("dark", 1.0, "34,12 39,20"),
        _line("dark", 1.0, "66,12 61,20"),
    ),
    "Свитеры": (
        _mirrored("body", "40,13 27,18 14,44 9,80 20,82 28,52 28,86", 1),
        _mirrored("trim", "42,6 40,15"),
        _mirrored("trim", "28,80 28,87"),
        _line("trim", 4, "10,78 20,81"),
        _line("trim", 4, "90,78 80,81"),
        _line("light", 1.2, "32,40 38,46 44,40 50,46 56,40 62,46 68,40"),
    ),
    "Носки": (
        _shape("body", "26,6 48,6 48,54 78,70 80,86 66,90 28,74 24,62", 2),
        _shape("trim", "26,6 48,6 48,16 26,16"),
        _shape("trim", "66,66 80,74 78,86 64,86", 1),
    ),
    "Кроссовки": (
        _shape("body", "10,36 26,32 34,42 44,36 62,52 86,58 92,70 8,72", 1),
        _shape("light", "6,70 93,68 92,80 8,81", 1),
        _line("light", 2, "42,42 52,52"),
        _line("light", 2, "49,40 58,54"),
        _shape("trim", "22,66 32,50 46,62 36,68"),
        _shape("dark", "12,36 26,33 32,41 14,42"),
    ),
    "Сапоги": (
        _shape("body", "28,6 56,6 54,58 86,72 90,86 28,86"),
        _shape("dark", "26,86 92,86 92,91 50,91 44,96 26,96"),
        _line("metal", 1.6, "33,10 34,66"),
        _shape("trim", "28,6 56,6 56,14 28,14"),
    ),
    "Сандалии": (
        _shape("dark", "6,66 94,70 92,80 8,78", 1),
        _shape("light", "6,62 94,67 94,71 6,67", 1),
        _line("body", 8, "20,66 36,42 50,66"),
        _line("body", 8, "60,68 72,54 86,68"),
        _line("trim", 4, "16,62 26,32 42,44"),
    ),
    "Сумки": (
        _mirrored("body", "22,38 12,88", 0),
        _arc("trim", 3.5, (50, 38, 20, 26), (180, 360)),
        _mirrored("trim", "22,38 21,50 50,58"),
        _oval("metal", 50, 58, 3, 3),
    ),
    "Рюкзаки": (
        _mirrored("body", "44,10 26,18 20,40 20,92", 1),
        _mirrored("trim", "28,56 28,84", 1),
        _arc("dark", 3, (50, 12, 9, 8), (180, 360)),
        _line("metal", 1.5, "30,36 70,36"),
        _line("dark", 4, "20,40 12,60 14,86"),
        _line("dark", 4, "80,40 88,60 86,86"),
    ),
    "Часы": (
        _mirrored("body", "41,4 38,34"),
        _mirrored("body", "38,66 41,96"),
        _oval("metal", 50, 50, 25, 25),
        _oval("light", 50, 50, 20, 20),
        _line("dark", 2, "50,34 50,50 61,56"),
        _oval("metal", 77, 50, 3, 4),
        _line("dark", 1, "50,31 50,34"),
        _line("dark", 1, "50,66 50,69"),
    ),
    "Шапки": (
        _mirrored("body", "42,22 24,34 16,70", 2),
        _mirrored("trim", "14,66 14,82", 1),
        _oval("light", 50, 18, 10, 10),
    ),
    "Зонты": (
        _shape("body", "6,50 14,30 32,16 50,12 68,16 86,30 94,50 79,46 64,51 50,46 36,51 21,46"),
        _line("dark", 1, "50,12 36,50"),
        _line("dark", 1, "50,12 64,50"),
        _line("metal", 2.5, "50,46 50,84"),
        _arc("trim", 4, (56, 84, 6, 8), (0, 180)),
    ),
    "Кружки": (
        _arc("trim", 7, (72, 52, 17, 17), (-90, 90)),
        _shape("body", "22,24 74,24 71,86 64,90 32,90 25,86"),
        _oval("light", 48, 24, 26, 6),
        _oval("dark", 48, 25, 22, 4),
    ),
    "Тарелки": (
        _oval("body", 50, 52, 46, 38),
        _oval("light", 50, 52, 32, 26),
        _oval("trim", 50, 52, 28, 22),
        _oval("light", 50, 52, 26, 20.5),
    ),
    "Бокалы": (
        _mirrored("body", "32,8 28,34 36,54 48,60", 0),
        _mirrored("trim", "30,28 31,40 38,52 48,58"),
        _line("light", 3, "50,58 50,88"),
        _oval("light", 50, 90, 19, 4),
        _line("light", 2, "36,14 34,34"),
    ),
    "Кастрюли": (
        _mirrored("body", "14,40 17,84", 0),
        _mirrored("metal", "46,24 12,36 12,41"),
        _oval("dark", 50, 21, 6, 4),
        _line("dark", 6, "2,50 15,50"),
        _line("dark", 6, "85,50 98,50"),
    ),
    "Вазы": (
        _mirrored("body", "38,34 44,44 30,60 28,76 38,94", 1),
        _line("trim", 2, "48,34 40,8"),
        _line("trim", 2, "50,34 54,4"),
        _line("trim", 2, "52,34 68,14"),
        _oval("light", 40, 9, 7, 6),
        _oval("light", 55, 6, 7, 6),
        _oval("light", 69, 14, 7, 6),
    ),
    "Лампы": (
        _mirrored("body", "36,8 18,46"),
        _line("metal", 4, "50,46 50,88"),
        _oval("dark", 50, 90, 22, 5),
        _oval("light", 50, 46, 31, 4),
    ),
    "Стулья": (
        _mirrored("body", "30,6 29,46", 0),
        _mirrored("trim", "26,50 22,60"),
        _line("dark", 4, "27,60 22,96"),
        _line("dark", 4, "73,60 78,96"),
        _line("dark", 3, "36,60 36,88"),
        _line("dark", 3, "64,60 64,88"),
        _line("dark", 3, "32,46 32,52"),
        _line("dark", 3, "68,46 68,52"),
    ),
    "Мягкие игрушки": (
        _oval("body", 29, 16, 10, 10),
        _oval("body", 71, 16, 10, 10),
        _oval("body", 50, 30, 24, 22),
        _oval("body", 50, 70, 26, 25),
        _oval("body", 20, 62, 9, 15),
        _oval("body", 80, 62, 9, 15),
        _oval("body", 32, 90, 12, 9),
        _oval("body", 68, 90, 12, 9),
        _oval("light", 50, 37, 11, 8),
        _oval("light", 50, 72, 15, 15),
        _oval("dark", 41, 26, 3, 3),
        _oval("dark", 59, 26, 3, 3),
        _oval("dark", 50, 34, 4, 2.5),
    ),
    "Машинки": (
        _shape("body", "4,56 20,52 32,32 66,32 78,52 96,58 96,74 4,74", 1),
        _shape("light", "26,52 35,37 48,37 48,52"),
        _shape("light", "52,37 64,37 72,52 52,52"),
        _oval("dark", 25, 74, 11, 11),
        _oval("dark", 75, 74, 11, 11),
        _oval("metal", 25, 74, 5, 5),
        _oval("metal", 75, 74, 5, 5),
    ),
    "Настольные игры": (
        _shape("body", "50,28 96,52 50,80 4,52"),
        _shape("light", "50,34 60,39.5 50,45 40,39.5"),
        _shape("light", "70,46 80,51 70,57 60,51"),
        _shape("light", "30,46 40,51 30,57 20,51"),
        _shape("light", "50,58 60,63.5 50,69 40,63.5"),
        _shape("trim", "4,52 50,80 96,52 96,58 50,87 4,58"),
        _shape("metal", "34,14 44,14 48,46 30,46", 1),
        _oval("metal", 39, 12, 6, 6),
        _shape("dark", "58,24 68,24 72,56 54,56", 1),
        _oval("dark", 63, 22, 6, 6),
    ),
    "Книги": (
        _shape("body", "20,8 76,8 76,92 20,92"),
        _shape("light", "76,8 84,12 84,94 76,92"),
        _shape("light", "20,92 76,92 84,95 28,96"),
        _line("trim", 3, "27,8 27,92"),
        _shape("light", "38,22 68,22 68,34 38,34"),
        _line("trim", 2, "42,44 64,44"),
    ),
    "Блокноты": (
        _shape("light", "24,12 80,12 80,94 24,94"),
        _shape("body", "22,10 76,10 76,90 22,90", 1),
        *(_line("metal", 1.8, f"16,{y} 27,{y}") for y in range(15, 90, 7)),
        _line("trim", 3, "68,10 68,90"),
    ),
    "Помады": (
        _mirrored("dark", "34,58 34,94"),
        _mirrored("metal", "38,44 38,58"),
        _shape("body", "41,20 59,8 59,44 41,44"),
        _line("metal", 1.5, "34,64 66,64"),
    ),
    "Духи": (
        _mirrored("body", "40,36 20,42 20,94", 1),
        _mirrored("metal", "43,26 43,38"),
        _mirrored("dark", "38,8 38,26"),
        _mirrored("light", "32,58 32,76"),
        _line("trim", 1.5, "36,67 64,67"),
    ),
    "Молотки": (
        _mirrored("trim", "46,30 45,96"),
        _shape("metal", "18,12 66,12 84,22 80,26 66,24 66,30 18,30"),
        _shape("dark", "12,10 20,10 20,32 12,32"),
        _mirrored("body", "44,62 43,97", 0),
    ),
    "Отвёртки": (
        _mirrored("metal", "48,40 48,90 49,96"),
        _mirrored("body", "42,4 39,14 42,24 41,36 46,42", 1),
        _line("trim", 2, "46,10 46,36"),
        _line("trim", 2, "54,10 54,36"),
    ),
    "Миски": (
        _mirrored("body", "18,44 6,80", 0),
        _oval("metal", 50, 44, 33, 9),
        _oval("skin", 50, 45, 27, 6),
        _oval("light", 50, 68, 8, 6),
        _oval("light", 40, 60, 3.5, 3.5),
        _oval("light", 50, 57, 3.5, 3.5),
        _oval("light", 60, 60, 3.5, 3.5),
    ),
    "Ошейники": (
        _arc("body", 9, (50, 42, 38, 28), (100, 440)),
        _mirrored("metal", "42,62 42,78"),
        _mirrored("dark", "46,66 46,74"),
        _oval("metal", 50, 88, 8, 8),
        _oval("trim", 50, 88, 5, 5),
    ),
    "Телефоны": (
        _mirrored("dark", "29,4 29,96", 1),
        _mirrored("body", "32,12 32,86", 0),
        _oval("metal", 50, 91, 3, 2.5),
        *(_oval("light", x, y, 4.5, 3.5) for x in (40, 50, 60) for y in (58, 68, 78)),
        _line("light", 2, "38,26 62,26"),
    ),
    "Наушники": (
        _arc("body", 7, (50, 52, 36, 42), (180, 360)),
        _shape("dark", "8,48 22,46 24,82 10,82", 2),
        _shape("dark", "92,48 78,46 76,82 90,82", 2),
        _shape("trim", "20,46 32,48 32,82 22,84", 2),
        _shape("trim", "80,46 68,48 68,82 78,84", 2),
    ),
    "Зажигалки": (
        _mirrored("body", "36,42 36,96", 0),
        _mirrored("metal", "36,28 36,43"),
        _oval("dark", 42, 26, 6, 6),
        _shape("trim", "54,24 48,14 56,0 62,14", 2),
    ),
    "Пепельницы": (
        _mirrored("body", "14,52 24,82", 0),
        _oval("metal", 50, 52, 37, 12),
        _oval("dark", 50, 54, 29, 8),
        _line("light", 4, "62,52 92,38"),
        _line("trim", 4, "84,42 94,37"),
    ),
}
