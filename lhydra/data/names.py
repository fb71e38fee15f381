"""Made-up artist names and track titles, readable and seeded. Any likeness to real ones is chance."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


def _words(text: str) -> list[str]:
    return text.split()


_ADJECTIVES = _words(
    "Amber Azure Bitter Blue Borrowed Brass Bright Broken Burning Candid Copper Coral Crimson Crooked Distant "
    "Drowsy Dusty Early Electric Emerald Endless Faded Feral Fragile Frozen Gentle Gilded Glass Golden Hidden "
    "Hollow Honest Idle Indigo Iron Ivory Jagged Lazy Little Lonely Lost Lucid Lunar Marble Mellow Midnight "
    "Misty Neon Nimble Opal Paper Patient Quiet Rapid Restless Ruby Rusty Salted Scarlet Secret Silent Silver "
    "Sleepless Slow Solar Stolen Sudden Tender Thirsty Tidal Velvet Violet Wandering Wild Winter Wooden Young"
)
_NOUNS = _words(
    "Anchor Arcade Atlas Avenue Balcony Beacon Bridge Cabin Canyon Carousel Cathedral Circus Compass Corridor "
    "Desert Ferry Fountain Garden Garland Glacier Harbour Harvest Horizon Island Jungle Kingdom Ladder Lagoon "
    "Lantern Letter Library Lighthouse Mansion Meadow Mirror Monsoon Mountain Museum Nomad Observatory Ocean "
    "Orchard Orbit Palace Parade Parlour Pavilion Pendulum Pilot Planet Prairie Railway Reservoir River Satellite "
    "Shadow Signal Skyline Staircase Station Summit Sundial Telescope Temple Theatre Thunder Valley Village Voyage"
)
_PLURALS = _words(
    "Animals Answers Arrows Birds Bells Boats Bones Candles Cities Clouds Colours Crowns Dancers Daydreams Doors "
    "Echoes Embers Engines Feathers Fields Fires Flowers Footsteps Foxes Ghosts Hands Hearts Horses Hours Houses "
    "Kites Lanterns Leaves Lies Lights Machines Maps Memories Mornings Nights Numbers Oceans Promises Questions "
    "Rivers Roads Roses Sails Seasons Secrets Shadows Ships Signals Stars Stories Storms Strangers Streets "
    "Summers Tides Trains Trees Umbrellas Voices Waves Whispers Windows Winters Wolves Words Years"
)
_GERUNDS = _words(
    "Asking Breaking Burning Calling Carrying Chasing Counting Crossing Drawing Dreaming Driving Escaping Finding "
    "Following Forgetting Hiding Holding Keeping Learning Leaving Losing Naming Painting Reading Running Sailing "
    "Selling Stealing Swimming Trading Waking Watching"
)
_FIRST = _words(
    "Ada Alma Amir Anouk Arlo Astrid Basil Bea Bruno Callum Carmen Cleo Dalia Dario Edda Elio Esme Farah Felix "
    "Flora Gideon Greta Hana Hugo Ida Ines Iris Jonas Juno Kai Kenji Lena Leon Linnea Lucia Magnus Mara Milo Mina "
    "Nadia Nils Nora Olive Oscar Pablo Petra Quinn Rafael Ravi Rosa Ruben Sanna Selma Silas Sofia Tariq Thea Timo "
    "Una Vera Viggo Willa Yara Zeno"
)
_LAST = _words(
    "Abernathy Alder Amaro Ashdown Barlowe Bellweather Birch Blackwood Calder Castellan Cotter Crane Dahlgren "
    "Delacourt Drummond Ellery Fairweather Falk Fenwick Fontaine Galloway Greaves Halloran Hartwell Holm Ibarra "
    "Jessup Kestrel Kowalke Lamarr Larkspur Lindqvist Lockhart Marchetti Marlowe Mendonca Merriweather Nakagawa "
    "Nightingale Novak Oakes Okonjo Pemberton Penhallow Quill Rasmussen Ravenel Rosedale Sandoval Sinclaire "
    "Sommers Sterling Tamura Thorne Underhill Valera Vance Whitlock Wilder Winslow Wren Yarrow Zamora"
)

Pattern = tuple[str, list[str], list[str]]  # a format with two gaps, the words for each
_ARTISTS: tuple[Pattern, ...] = (
    ("The {} {}", _ADJECTIVES, _NOUNS),
    ("{} {}", _FIRST, _LAST),
    ("{} {}", _ADJECTIVES, _PLURALS),
    ("{} & the {}", _FIRST, _PLURALS),
    ("{} {}", _NOUNS, _PLURALS),
)
_TITLES: tuple[Pattern, ...] = (
    ("{} {}", _ADJECTIVES, _PLURALS),
    ("{} the {}", _GERUNDS, _NOUNS),
    ("{} of the {}", _PLURALS, _NOUNS),
    ("A {} {}", [word for word in _ADJECTIVES if word[0] not in "AEIO"], _NOUNS),
    ("{} {}", _GERUNDS, _PLURALS),
    ("No More {} in the {}", _PLURALS, _NOUNS),
)


def artist_names(n: int, rng: np.random.Generator) -> pa.StringArray:
    """Returns `n` distinct artist names; past some 20,000 they are numbered ("The Velvet Harbour 2").

    Args:
        n: how many.
        rng: the random stream.

    Returns:
        The names.
    """
    space = _space(_ARTISTS)
    names = pa.array([_phrase(_ARTISTS, int(number)) for number in rng.permutation(space)[:n]], pa.string())
    if n <= space:
        return names
    lap, place = np.divmod(np.arange(space, n), space)
    numbered = pc.binary_join_element_wise(names.take(pa.array(place)), pa.array(lap + 1).cast(pa.string()), " ")
    return pa.concat_arrays([names, numbered])


def track_titles(n: int, rng: np.random.Generator) -> npt.NDArray[np.int32]:
    """Returns the titles of `n` tracks as positions in `every_title()`; as in life, two tracks may share one.

    Args:
        n: how many.
        rng: the random stream.

    Returns:
        (n,) int32 positions.
    """
    return rng.integers(_space(_TITLES), size=n).astype(np.int32)


def every_title() -> pa.StringArray:
    """Returns all titles there are, some 13,000."""
    return pa.array([_phrase(_TITLES, number) for number in range(_space(_TITLES))], pa.string())


def _space(patterns: tuple[Pattern, ...]) -> int:
    """How many numbers `_phrase` maps to distinct phrases."""
    return len(patterns) * min(len(first) * len(second) for _, first, second in patterns)


def _phrase(patterns: tuple[Pattern, ...], number: int) -> str:
    number, pattern = divmod(number, len(patterns))
    text, first, second = patterns[pattern]
    return text.format(first[number % len(first)], second[number // len(first)])
