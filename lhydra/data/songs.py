"""Ids of tracks that have none: made from artist and title, so that two spellings of one song are one track."""

import duckdb

from lhydra.limits import MAX_ID_CHARS

SAID = "artist and title in lower case, without accents, punctuation and what follows feat."
# Accents go where a script has them as ornaments; elsewhere such marks are letters (in Hindi, or the voicing of kana).
_WESTERN = r"[\p{Latin}\p{Greek}\p{Cyrillic}\p{Common}\p{Inherited}]*"
_GUEST = r"(?:feat|ft|featuring)"
_MACROS = rf"""
CREATE OR REPLACE MACRO without_guests(x) AS regexp_replace(regexp_replace(x,
    '\s*[(\[]\s*{_GUEST}[.\s][^)\]]*[)\]]', '', 'gi'), '\s+{_GUEST}[.\s]\s*\S.*$', '', 'i');
CREATE OR REPLACE MACRO without_accents(x) AS
    CASE WHEN regexp_full_match(x, '{_WESTERN}') THEN nfc_normalize(strip_accents(x)) ELSE nfc_normalize(x) END;
CREATE OR REPLACE MACRO without_points(x) AS trim(regexp_replace(regexp_replace(x,
    '[''’‘`´]', '', 'g'), '[^\p{{L}}\p{{M}}\p{{N}}]+', ' ', 'g'));
CREATE OR REPLACE MACRO plain_name(x) AS coalesce(
    nullif(without_points(without_accents(lower(without_guests(x)))), ''), nullif(lower(trim(x)), ''));
CREATE OR REPLACE MACRO short_id(x) AS
    CASE WHEN length(x) > {MAX_ID_CHARS} THEN left(x, {MAX_ID_CHARS - 33}) || ' ' || md5(x) ELSE x END;
CREATE OR REPLACE MACRO song_id(artist, title) AS
    [short_id(x) FOR x IN [plain_name(artist) || ' - ' || plain_name(title)]][1];
"""


def configure(con: duckdb.DuckDBPyConnection) -> None:
    """Gives a connection the macro `song_id(artist, title)`: NULL where one of them is missing.

    Args:
        con: the connection.
    """
    con.execute(_MACROS)
