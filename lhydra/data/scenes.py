"""The fixed matter of the synthetic world: genres with their sound and styles, moods, regions with their countries."""

import numpy as np

MOODS = ("calm", "easy", "driving")
# genre: danceability (logit), tempo (BPM), speechiness, instrumentalness (logit), share explicit,
#        then its styles: name, typical year, mood (negative calm, positive driving)
_GENRES: dict[str, tuple[tuple[float, float, float, float, float], tuple[tuple[str, int, float], ...]]] = {
    "Rock": (
        (0.0, 124, 0.05, -1.5, 0.05),
        (("classic rock", 1974, 0.5), ("indie rock", 2006, 0.3), ("garage rock", 1998, 1.0), ("dream pop", 2010, -0.9)),
    ),
    "Pop": (
        (0.7, 118, 0.06, -4.0, 0.10),
        (("synthpop", 1985, 0.4), ("dance pop", 2014, 0.7), ("teen pop", 2019, 0.2), ("soft pop", 1979, -0.8)),
    ),
    "Electronic": (
        (0.9, 126, 0.06, 1.0, 0.02),
        (("house", 2004, 0.6), ("techno", 1996, 1.1), ("ambient", 2001, -1.5), ("drum and bass", 1999, 1.0)),
    ),
    "Rap": (
        (1.0, 96, 0.25, -4.0, 0.45),
        (("boom bap", 1994, 0.2), ("trap", 2018, 0.7), ("cloud rap", 2016, -0.7), ("conscious rap", 2003, 0.0)),
    ),
    "Metal": (
        (-0.7, 134, 0.08, -0.5, 0.20),
        (("thrash metal", 1987, 1.3), ("doom metal", 1995, 0.4), ("power metal", 2000, 1.0), ("metalcore", 2009, 1.2)),
    ),
    "Jazz": (
        (-0.1, 112, 0.05, 1.2, 0.01),
        (("swing", 1952, 0.3), ("cool jazz", 1961, -1.1), ("jazz fusion", 1977, 0.4), ("nu jazz", 2008, -0.3)),
    ),
    "Folk": (
        (-0.2, 110, 0.04, -2.0, 0.02),
        (
            ("singer-songwriter", 1972, -1.0),
            ("folk rock", 1968, 0.1),
            ("celtic folk", 1993, -0.2),
            ("indie folk", 2012, -0.9),
        ),
    ),
    "RnB": (
        (0.8, 104, 0.08, -3.5, 0.12),
        (("classic soul", 1967, -0.1), ("funk", 1976, 0.7), ("neo soul", 2000, -0.6), ("contemporary rnb", 2015, -0.2)),
    ),
    "Country": (
        (0.2, 116, 0.04, -4.0, 0.02),
        (
            ("outlaw country", 1975, 0.1),
            ("bluegrass", 1964, 0.4),
            ("country pop", 2011, 0.3),
            ("americana", 1997, -0.5),
        ),
    ),
    "Latin": (
        (1.1, 108, 0.08, -3.0, 0.08),
        (("salsa", 1980, 0.6), ("reggaeton", 2017, 0.7), ("bossa nova", 1963, -1.0), ("cumbia", 1992, 0.3)),
    ),
    "Reggae": (
        (1.0, 92, 0.10, -2.0, 0.06),
        (("roots reggae", 1977, -0.2), ("dub", 1983, -0.6), ("dancehall", 2002, 0.6), ("ska", 1990, 0.9)),
    ),
    "Classical": (
        (-1.2, 104, 0.04, 2.2, 0.00),
        (
            ("baroque", 1969, -0.6),
            ("romantic piano", 1982, -1.3),
            ("minimalism", 1991, -1.0),
            ("film score", 2007, -0.2),
        ),
    ),
}
GENRES = tuple(_GENRES)
STYLES = tuple(style for _, styles in _GENRES.values() for style, _, _ in styles)
STYLE_GENRE = np.repeat(np.arange(len(GENRES)), [len(styles) for _, styles in _GENRES.values()])
STYLE_YEAR = np.array([year for _, styles in _GENRES.values() for _, year, _ in styles], np.float64)
STYLE_MOOD = np.array([mood for _, styles in _GENRES.values() for _, _, mood in styles])
GENRE_SOUND = np.array([sound for sound, _ in _GENRES.values()])

# region: its home genres, then its countries with their share of the users in percent
_REGIONS: dict[str, tuple[tuple[str, ...], dict[str, int]]] = {
    "Europe": (
        ("Electronic", "Metal"),
        {"UK": 9, "Germany": 9, "France": 7, "Spain": 5, "Poland": 4, "Netherlands": 3, "Sweden": 3},
    ),
    "North America": (("Country", "Rap"), {"USA": 20, "Canada": 5}),
    "Latin America": (("Latin", "Reggae"), {"Brazil": 8, "Mexico": 6, "Argentina": 4, "Colombia": 2, "Chile": 2}),
    "Rest of World": (("Pop", "RnB"), {"Japan": 4, "India": 3, "Australia": 3, "South Africa": 2, "UAE": 1}),
}
REGIONS = tuple(_REGIONS)
COUNTRIES = tuple(country for _, shares in _REGIONS.values() for country in shares)
COUNTRY_REGION = np.repeat(np.arange(len(REGIONS)), [len(shares) for _, shares in _REGIONS.values()])
COUNTRY_SHARE = np.array([share for _, shares in _REGIONS.values() for share in shares.values()], np.float64)
HOME_GENRES = tuple(home for home, _ in _REGIONS.values())  # of each region
GENDERS = ("Female", "Male")
