"""The words and sentence patterns of the demo's questions."""


def words(text: str) -> tuple[str, ...]:
    """Split a word list written as one text."""
    return tuple(text.split())


# name, symbol of the larger and of the smaller unit, how many of the smaller make one larger
UNITS = (
    ("meters", "m", "centimeters", "cm", 100),
    ("centimeters", "cm", "millimeters", "mm", 10),
    ("kilometers", "km", "meters", "m", 1000),
    ("kilograms", "kg", "grams", "g", 1000),
    ("liters", "L", "milliliters", "mL", 1000),
    ("hours", "h", "minutes", "min", 60),
    ("minutes", "min", "seconds", "s", 60),
)
UNIT_PROMPTS = (
    "Convert {given} to {target}.",
    "What is {given} in {target}?",
    "How many {target_name} are in {x} {source_name}?",
    "Express {x} {source_name} in {target_name}.",
    "I have {given}. How much is that in {target}?",
)

SUM_PROMPTS = (
    "What is {a} + {b} - {c}?",
    "Work out {a} + {b} - {c}.",
    "Add {b} to {a}, then subtract {c}.",
    "Tom has {a} coins, finds {b} and spends {c}. How many coins are left?",
    "A bus with {a} people picks up {b} and drops off {c}. How many are on it?",
)
PRODUCT_PROMPTS = (
    "What is {a} x {b} + {c}?",
    "Work out {a} times {b} plus {c}.",
    "Multiply {a} by {b}, then add {c}.",
    "There are {a} boxes of {b} pens and {c} loose pens. How many pens in all?",
)

MONTHS = words("January February March April May June July August September October November December")
WEEKDAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
DATE_PROMPTS = (
    "Write {day} {month} {year} as an ISO date.",
    "What is {month} {day}, {year} in YYYY-MM-DD form?",
    "Give the ISO date for {month} {day}, {year}.",
    "The meeting is on {day} {month} {year}. Write that date as YYYY-MM-DD.",
)
DAY_AFTER_PROMPTS = (
    "Which weekday is {span} after {day}?",
    "Today is {day}. What weekday is it in {span}?",
    "What day of the week comes {span} after {day}?",
    "A parcel sent on {day} takes {span}. On which weekday does it arrive?",
)
DAY_BEFORE_PROMPTS = (
    "Which weekday is {span} before {day}?",
    "Today is {day}. What weekday was it {span} ago?",
    "What day of the week comes {span} before {day}?",
    "A parcel came on {day} after {span}. On which weekday was it sent?",
)

NAMES = words(
    "Ada Alice Anna Ben Bob Clara Daniel David Emma Frank George Grace Henry Jack James Julia "
    "Laura Leo Lucy Maria Mark Mary Nina Noah Oliver Paul Peter Rosa Sam Sarah Simon Victor"
)
CITIES = words(
    "Athens Berlin Boston Cairo Chicago Dallas Delhi Denver Dublin Geneva Lisbon London Madrid "
    "Miami Milan Moscow Oslo Paris Prague Rome Seattle Tokyo Toronto Vienna Warsaw Zurich"
)
GOODS = words(
    "bag basket bike blanket book camera chair clock coat cup desk drum guitar hat jacket kettle "
    "lamp mirror pen phone rug shirt table vase"
)
EXTRACTION_PROMPTS = (
    "Extract the {keys} as JSON: {text}",
    "{text} Give the {keys} as JSON.",
    "Turn this into JSON with {keys}: {text}",
    "{text} What are the {keys}? Reply in JSON.",
)
PERSON_TEXTS = (
    "{name} lives in {city}.",
    "{name} moved to {city} last year.",
    "In {city}, {name} runs a small shop.",
    "My friend {name} works in {city}.",
)
PURCHASE_TEXTS = (
    "{name} paid {price} euros for a {item}.",
    "The {item} costs {price} euros.",
    "For {price} euros, {name} bought a {item}.",
    "We sold a {item} for {price} euros.",
)

SORTING_PROMPTS = (
    "Sort {a}, {b} and {c} from {first} to {last}.",
    "Put {a}, {b} and {c} in order, {first} first.",
    "Order these numbers from {first} to {last}: {a}, {b}, {c}.",
    "List {a}, {b} and {c} with the {first} first.",
)

EXTREME_WORDS = {"largest": ("largest", "biggest", "highest"), "smallest": ("smallest", "lowest")}
EXTREME_PROMPTS = (
    "Which is the {word}: {a}, {b} or {c}?",
    "Find the {word} of {a}, {b} and {c}.",
    "Out of {a}, {b} and {c}, which number is the {word}?",
    "Tell me the {word} number in this list: {a}, {b}, {c}.",
)

THINGS = words(
    "apple bean bird boat book bread bus cake camera car cat chair clock coat corn cup dog egg "
    "fig fish hat horse lake lamp leaf milk moon pear pen phone rice river rose salt shirt snow "
    "soup star stone sugar sun table train tree"
)
COUNTING_PROMPTS = (
    "How many items are in this list: {things}?",
    "Count the words: {things}.",
    "My list says {things}. How many things is that?",
    "Tell me how many things are named here: {things}.",
)
