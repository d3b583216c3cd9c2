"""Turns what a text shall give away into the title and description of a SYNTHETIC product, in a seller's Russian.

A fact is told by one of several phrases, in the title or in the description; the rest is advertising, words for the
search, and words that mislead ("подарок мужу" for a women's thing). Letters get swapped, lost, doubled or replaced by
Latin look-alikes.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from product_classificator.catalog.assortment import KIND_OF

_GENDERS = "мжср"
# For masculine, feminine, neuter and plural nouns; the first group of a fact agrees with the noun and stands in titles.
_ADJECTIVES: Mapping[str, tuple[str, ...]] = {
    "Мужской": ("мужской мужская мужское мужские",),
    "Женский": ("женский женская женское женские",),
    "Мальчики": ("мальчиковый мальчиковая мальчиковое мальчиковые",),
    "Девочки": ("девчачий девчачья девчачье девчачьи",),
    "лето": ("летний летняя летнее летние",),
    "зима": ("зимний зимняя зимнее зимние", "утеплённый утеплённая утеплённое утеплённые"),
    "демисезон": ("демисезонный демисезонная демисезонное демисезонные", "осенний осенняя осеннее осенние"),
}
_PHRASES: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("sex", "Мужской"): ("для мужчин", "муж.", "мужской размерный ряд", "для настоящих мужчин"),
    ("sex", "Женский"): ("для женщин", "жен.", "для неё", "женская коллекция", "для девушек и женщин"),
    ("sex", "Унисекс"): ("унисекс", "подойдёт и ему, и ей", "для всей семьи", "unisex"),
    ("sex", "Мальчики"): ("для мальчика", "для мальчиков", "на мальчика", "сыну"),
    ("sex", "Девочки"): ("для девочки", "для девочек", "на девочку", "дочке"),
    ("season", "лето"): ("на лето", "для жаркой погоды", "пляжный сезон", "лёгкая модель, не жарко"),
    ("season", "зима"): ("на зиму", "на меху", "тёплая подкладка", "до -30 градусов", "с утеплителем"),
    ("season", "демисезон"): ("весна-осень", "на межсезонье", "осень", "демисезон"),
    ("season", "круглогодичный"): ("на любой сезон", "всесезон", "круглый год", "вне сезона"),
    ("age_restrictions", "0+"): ("0+", "с рождения", "без ограничений по возрасту", "для малышей и взрослых"),
    ("age_restrictions", "3+"): ("3+", "от 3 лет", "от трёх лет", "для детского сада"),
    ("age_restrictions", "6+"): ("6+", "от 6 лет", "для школьников", "младший школьный возраст"),
    ("age_restrictions", "12+"): ("12+", "от 12 лет", "для подростков", "подростковая линейка"),
    ("age_restrictions", "18+"): ("18+", "с 18 лет", "только совершеннолетним", "детям не продаём"),
    ("isadult", "да"): ("товар для взрослых", "продажа по паспорту", "взрослая тематика", "только для взрослых"),
    ("isadult", "нет"): ("", "без ограничений", "можно всем"),
    ("fragility", "да"): ("стекло", "из тонкого фарфора", "керамика", "хрупкое, кладём в пупырку", "хрусталь"),
    ("fragility", "нет"): ("", "не бьётся", "прочный материал", "ударопрочный пластик"),
}
_HINTS: Mapping[str, tuple[str, ...]] = {
    "Одежда": ("вещь в гардероб", "базовый гардероб", "ткань приятная к телу"),
    "Обувь": ("удобная колодка", "пара на каждый день", "прошитая подошва"),
    "Аксессуары": ("завершит образ", "модный аксессуар", "дополнение к образу"),
    "Посуда": ("на кухню", "для сервировки стола", "моется в посудомойке"),
    "Дом и интерьер": ("в гостиную", "украсит интерьер", "для дома и дачи"),
    "Игрушки": ("для игр", "весёлый досуг", "развивает воображение"),
    "Книги и канцтовары": ("бумага плотная", "твёрдая обложка", "для учёбы и отдыха"),
    "Электроника": ("зарядка в комплекте", "ёмкий аккумулятор", "гарантия на электронику год"),
    "Инструменты": ("в мастерскую", "для ремонта", "закалённая сталь"),
    "Красота": ("бьюти новинка", "стойкая формула", "в косметичку"),
    "Зоотовары": ("для питомца", "для кошек и собак", "хвостатым понравится"),
    "Товары для курения": ("для курильщика", "табачная тематика", "к сигарам"),
}
_VAGUE = "новинка сезона:ж,товар:м,хит продаж:м,стильная вещь:ж,модель:ж,отличный выбор:м,предложение дня:с"
_PRAISE = (
    "Отличное качество по доступной цене.",
    "Быстрая доставка в любой регион.",
    "Прекрасный подарок на новый год и день рождения.",
    "Цвет может отличаться от фото из-за настроек экрана.",
    "Проверяем каждую единицу перед отправкой.",
    "Состав и размеры смотрите в характеристиках.",
    "Гарантия возврата 14 дней.",
    "Сделано с любовью.",
    "Тренд 2024, хит маркетплейсов.",
)
_MISLEADING = (
    "Подарок мужу, папе, брату.",
    "Подарок жене, маме, подруге.",
    "Понравится и сыну, и дочке.",
    "Отлично сочетается с джинсами, сумкой и кроссовками.",
    "Смотрите также наши кружки, вазы и лампы.",
    "Упаковка: книга пожеланий и коробка.",
    "Не игрушка.",
    "Зима, лето, осень: у нас есть всё.",
    "В нашем магазине есть товары от 3 лет и для подростков.",
    "Стекло и керамика в других карточках.",
)
_SEARCH = ("тренд", "хит", "2024", "топ", "подарок", "недорого", "распродажа", "оригинал", "premium", "new", "lux")
_LATIN = str.maketrans("аеосрхуАЕОСРХ", "aeocpxyAEOCPX")

Text = tuple[str, str]
"""Title and description."""


def write_text(told: Mapping[str, str], brand: str | None, article: int, rng: np.random.Generator) -> Text:
    """Writes a text that gives away `told` (characteristic -> label) and advertises.

    Without a sub_category the thing is not called by its name; a category alone gives a hint.
    """
    noun, gender = _noun(told, rng)
    title = [noun]
    sentences: list[str] = []
    for characteristic, label in told.items():
        if characteristic in ("category", "sub_category"):
            continue
        adjectives = _ADJECTIVES.get(label, ()) if rng.random() < 0.45 else ()
        phrase = _pick(adjectives, rng).split()[gender] if adjectives else _pick(_PHRASES[characteristic, label], rng)
        if phrase:
            (title if rng.random() < 0.55 else sentences).append(phrase)
    if "sub_category" not in told and "category" in told:
        sentences.append(_pick(_HINTS[told["category"]], rng))
    if "sub_category" not in told:
        title.append(f"арт. {100_000 + article * 7919 % 900_001}")
    if brand is not None and rng.random() < 0.5:
        title.append(brand)
    title += [_pick(_SEARCH, rng) for _ in range(int(rng.integers(0, 4)))]
    sentences = [f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences]
    sentences += [_PRAISE[i] for i in rng.choice(len(_PRAISE), int(rng.integers(1, 4)), replace=False)]
    if rng.random() < 0.25:
        sentences.append(_pick(_MISLEADING, rng))
    order = rng.permutation(len(sentences))
    written = " ".join(title), " ".join(sentences[i] for i in order)
    return _spoil(written[0][0].upper() + written[0][1:], rng), _spoil(written[1], rng)


def vary_text(text: Text, rng: np.random.Generator) -> Text:
    """Rewrites a text as a lazy seller would: other case, punctuation and spaces, but the same words."""
    title, description = text
    title = title.upper() if rng.random() < 0.5 else title.lower()
    return "  ".join(title.split(" ")) + "!!!", description.replace(". ", " — ")


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _noun(told: Mapping[str, str], rng: np.random.Generator) -> tuple[str, int]:
    """Returns what the thing is called, and the place of its gender in `_GENDERS`; the first noun is the usual one."""
    nouns = (KIND_OF[told["sub_category"]].nouns if "sub_category" in told else _VAGUE).split(",")
    noun, gender = (nouns[0] if rng.random() < 0.4 else _pick(nouns, rng)).split(":")
    return noun, _GENDERS.index(gender)


def _spoil(text: str, rng: np.random.Generator) -> str:
    """Puts a typing error into about one long word of sixteen, and Latin letters into one of fifty."""
    words = text.split(" ")
    for i, chance in enumerate(rng.random(len(words)).tolist()):
        word = words[i]
        if chance > 0.08 or len(word) < 5:
            continue
        at = int(rng.integers(1, len(word) - 2))
        if chance < 0.02:
            words[i] = word.translate(_LATIN)
        elif chance < 0.04:
            words[i] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        elif chance < 0.06:
            words[i] = word[:at] + word[at + 1 :]
        else:
            words[i] = word[:at] + word[at] + word[at:]
    return " ".join(words)
