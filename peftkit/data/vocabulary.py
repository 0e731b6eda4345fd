"""The small language of the drawn world: what can be drawn, what can be said, and what is simply known.

Facts are taught to the bundled bases as text only; pictures never show them (the part that OKVQA plays).
"""
SHAPES = ("circle", "square", "triangle", "cross", "star", "ring")
PLURALS = ("circles", "squares", "triangles", "crosses", "stars", "rings")
WORDS = ("cat", "dog", "sun", "sea", "bus", "hat", "key", "map", "box", "cup", "pen", "jam")
DIGITS = tuple("0123456789")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
PLACES = tuple(f"{row} {column}" for row in ROWS for column in COLUMNS)  # reading order, 9 cells
LETTERS = ("a", "b", "c")

HOME_OF_SHAPE = dict(zip(SHAPES, ("lake", "city", "desert", "church", "sky", "farm")))
TASTE_OF_COLOR = dict(zip(COLORS, ("spicy", "bitter", "salty", "sour", "sweet", "mild")))

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<fake_token_around_image>", "<end_of_utterance>")
_FUNCTION_WORDS = """user assistant what which where how many is are there the a an of in on at and or not no yes
    color shape thing things word number written read describe briefly short answer letter choices fill blank
    home taste unanswerable if unclear hint more most same fewer text scene question true icons icon seen shows
    picture one two three four five six . , ? :""".split()


def vocabulary() -> list[str]:
    """Every token of the drawn world in a fixed order: special tokens first, then words; no duplicates."""
    groups = (SPECIAL, _FUNCTION_WORDS, SHAPES, PLURALS, WORDS, DIGITS, COLORS, ROWS, COLUMNS, LETTERS,
              HOME_OF_SHAPE.values(), TASTE_OF_COLOR.values())
    return list(dict.fromkeys(token for group in groups for token in group))
