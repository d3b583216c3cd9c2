"""Turns random numbers into the true characteristics of SYNTHETIC products: what a made-up marketplace sells.

Each kind (sub_category) says how its goods spread over sex, season and age, so that characteristics depend on
each other as they do in a shop. Sub-categories follow Zipf's law in the order of the table below.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

LABELS: Mapping[str, tuple[str, ...]] = {
    "sex": ("Мужской", "Женский", "Унисекс", "Мальчики", "Девочки"),
    "season": ("лето", "зима", "демисезон", "круглогодичный"),
    "age_restrictions": ("0+", "3+", "6+", "12+", "18+"),
    "isadult": ("да", "нет"),
    "fragility": ("да", "нет"),
}
"""characteristic -> its labels; the weights below are in this order."""

CHARACTERISTICS = ("category", "sub_category", "isadult", "sex", "season", "age_restrictions", "fragility")

Weights = tuple[float, ...]

_DRESS = (0.27, 0.35, 0.1, 0.14, 0.14)
_FEMALE = (0.0, 0.68, 0.04, 0.0, 0.28)
_HANDY = (0.45, 0.0, 0.55, 0.0, 0.0)
_PLAY = (0.0, 0.0, 0.4, 0.3, 0.3)
_ANYONE = (0.03, 0.07, 0.9, 0.0, 0.0)
_ALWAYS = (0.03, 0.02, 0.03, 0.92)
_WARM = (0.02, 0.48, 0.38, 0.12)
_LIGHT = (0.58, 0.04, 0.1, 0.28)
_MIXED = (0.25, 0.22, 0.28, 0.25)
_GENERAL = (0.78, 0.05, 0.06, 0.09, 0.02)
_CHILD = (0.4, 0.3, 0.2, 0.1, 0.0)
_TOY = (0.3, 0.42, 0.24, 0.04, 0.0)
_READ = (0.14, 0.12, 0.26, 0.24, 0.24)
_GAME = (0.04, 0.12, 0.4, 0.28, 0.16)
_GROWN = (0.1, 0.0, 0.04, 0.42, 0.44)
_SMOKE = (0.0, 0.0, 0.0, 0.04, 0.96)


class Kind(NamedTuple):
    """A sub-category and how its goods spread.

    Attributes:
        category: the category it belongs to.
        sub_category: its label.
        nouns: how sellers call one item, separated by commas, each "noun:gender", gender one of м, ж, с, р (plural).
        sex: weights in the order of `LABELS`; likewise `season` and `age`.
        fragile: share of fragile goods.
        adult: share of goods for adults only.
    """

    category: str
    sub_category: str
    nouns: str
    sex: Weights = _ANYONE
    season: Weights = _ALWAYS
    age: Weights = _GENERAL
    fragile: float = 0.01
    adult: float = 0.0


KINDS: tuple[Kind, ...] = (
    Kind("Одежда", "Футболки", "футболка:ж,майка:ж,поло:с", _DRESS, _LIGHT),
    Kind("Обувь", "Кроссовки", "кроссовки:р,кеды:р,сникерсы:р", _DRESS, _MIXED),
    Kind("Одежда", "Платья", "платье:с,сарафан:м,туника:ж", _FEMALE, _LIGHT),
    Kind("Аксессуары", "Сумки", "сумка:ж,шоппер:м,клатч:м", (0.15, 0.7, 0.1, 0.0, 0.05)),
    Kind("Посуда", "Кружки", "кружка:ж,чашка:ж,бокал для чая:м", fragile=0.6),
    Kind("Игрушки", "Мягкие игрушки", "мягкая игрушка:ж,плюшевый мишка:м,обнимашка:ж", _PLAY, age=_TOY),
    Kind("Одежда", "Куртки", "куртка:ж,пуховик:м,ветровка:ж,парка:ж", _DRESS, _WARM),
    Kind("Дом и интерьер", "Вазы", "ваза:ж,вазочка:ж,кашпо:с", fragile=0.62),
    Kind("Книги и канцтовары", "Книги", "книга:ж,роман:м,издание:с", age=_READ),
    Kind("Электроника", "Телефоны", "телефон:м,смартфон:м,мобильник:м", fragile=0.08),
    Kind("Одежда", "Брюки", "брюки:р,джинсы:р,штаны:р", _DRESS, _MIXED),
    Kind("Инструменты", "Молотки", "молоток:м,кувалда:ж,киянка:ж", _HANDY),
    Kind("Красота", "Духи", "духи:р,туалетная вода:ж,парфюм:м", (0.3, 0.55, 0.15, 0.0, 0.0), age=_GROWN, fragile=0.55),
    Kind("Аксессуары", "Рюкзаки", "рюкзак:м,ранец:м,портфель:м", (0.15, 0.15, 0.2, 0.25, 0.25)),
    Kind("Игрушки", "Машинки", "машинка:ж,грузовик:м,автомобиль игрушечный:м", (0, 0, 0.25, 0.7, 0.05), age=_TOY),
    Kind("Обувь", "Сапоги", "сапоги:р,ботинки:р,угги:р", _DRESS, _WARM),
    Kind("Зоотовары", "Миски", "миска:ж,кормушка:ж,поилка:ж", fragile=0.15),
    Kind("Игрушки", "Настольные игры", "настольная игра:ж,настолка:ж,викторина:ж", _PLAY, age=_GAME, adult=0.12),
    Kind("Одежда", "Свитеры", "свитер:м,джемпер:м,кофта:ж", _DRESS, _WARM),
    Kind("Электроника", "Наушники", "наушники:р,гарнитура:ж,блютуз уши:р", fragile=0.05),
    Kind("Посуда", "Тарелки", "тарелка:ж,блюдо:с,салатник:м", fragile=0.65),
    Kind("Аксессуары", "Часы", "часы:р,хронометр:м,часики:р", (0.4, 0.35, 0.1, 0.08, 0.07), fragile=0.1),
    Kind("Дом и интерьер", "Лампы", "лампа:ж,светильник:м,ночник:м", fragile=0.45),
    Kind("Аксессуары", "Шапки", "шапка:ж,бини:ж,ушанка:ж", _DRESS, _WARM),
    Kind("Инструменты", "Отвёртки", "отвёртка:ж,отвертка крестовая:ж,шуруповёрт ручной:м", _HANDY),
    Kind("Красота", "Помады", "помада:ж,блеск для губ:м,тинт:м", (0.0, 0.95, 0.05, 0.0, 0.0), age=_GROWN),
    Kind("Обувь", "Сандалии", "сандалии:р,босоножки:р,шлёпанцы:р", _DRESS, (0.85, 0.0, 0.05, 0.1)),
    Kind("Посуда", "Бокалы", "бокал:м,фужер:м,рюмка:ж", age=_GROWN, fragile=0.85),
    Kind("Одежда", "Носки", "носки:р,гольфы:р,следки:р", _DRESS, _MIXED),
    Kind("Книги и канцтовары", "Блокноты", "блокнот:м,тетрадь:ж,скетчбук:м", (0.05, 0.15, 0.5, 0.1, 0.2)),
    Kind("Зоотовары", "Ошейники", "ошейник:м,амуниция:ж,поводок с ошейником:м"),
    Kind("Дом и интерьер", "Стулья", "стул:м,табурет:м,кресло:с"),
    Kind("Товары для курения", "Зажигалки", "зажигалка:ж,огниво:с", (0.5, 0, 0.5, 0, 0), age=_SMOKE, adult=0.95),
    Kind("Посуда", "Кастрюли", "кастрюля:ж,казан:м,сотейник:м", fragile=0.04),
    Kind("Товары для курения", "Пепельницы", "пепельница:ж,подставка для сигар:ж", age=_SMOKE, fragile=0.4, adult=0.95),
    Kind("Аксессуары", "Зонты", "зонт:м,зонтик:м", _DRESS, (0.1, 0.0, 0.6, 0.3)),
)

_ZIPF = 1.0 / (np.arange(len(KINDS)) + 4.0)
_KIND_SHARE = _ZIPF / _ZIPF.sum()
KIND_OF: Mapping[str, Kind] = {kind.sub_category: kind for kind in KINDS}


def draw_facts(rng: np.random.Generator) -> dict[str, str]:
    """Draws the seven true characteristics of one product."""
    kind = KINDS[int(rng.choice(len(KINDS), p=_KIND_SHARE))]
    is_adult = rng.random() < kind.adult
    sex = _draw("sex", kind.sex, rng)
    is_for_children = sex in ("Мальчики", "Девочки") and kind.age is _GENERAL
    age = "18+" if is_adult else _draw("age_restrictions", _CHILD if is_for_children else kind.age, rng)
    return {
        "category": kind.category,
        "sub_category": kind.sub_category,
        "isadult": "да" if is_adult else "нет",
        "sex": sex,
        "season": _draw("season", kind.season, rng),
        "age_restrictions": age,
        "fragility": "да" if rng.random() < kind.fragile else "нет",
    }


def _draw(characteristic: str, weights: Weights, rng: np.random.Generator) -> str:
    return LABELS[characteristic][int(rng.choice(len(weights), p=weights))]
